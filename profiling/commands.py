"""Run a command as a child process: signals are forwarded to it, and its end is noticed at once."""

import os
import signal
import time
from collections.abc import Sequence
from types import TracebackType

from pbd.errors import MissingInputError

FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
FROM_KERNEL = 0x80
"""`si_code` of a signal from the terminal (Linux' SI_KERNEL): the command got it, too, so it is not forwarded."""
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Command:
    """A context that blocks signals, in threads started within as well, so that `wait` can forward them to the command.

    Args:
        argv: the program and its arguments.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._mask: set[int] = set()
        self._process = 0

    def __enter__(self) -> "Command":
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def start(self) -> None:
        """Start the command with the signal mask that this process had before the context.

        Raises:
            MissingInputError: there is no such program, or it cannot be executed.
        """
        try:
            self._process = os.posix_spawnp(
                self._argv[0], self._argv, os.environ, setsigmask=self._mask, setsigdef=IGNORED_BY_PYTHON
            )
        except OSError as error:
            raise MissingInputError(
                f"the command must be a program. Received: {self._argv[0]!r}: {error.strerror}."
            ) from error

    def wait(self, seconds: float) -> int | None:
        """Forward signals until the command ends, at most for `seconds`.

        Returns:
            The exit code of the command, or 128 plus the number of the signal that ended it, as in a shell; None if it
            still runs.
        """
        until_s = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(self._process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            received = signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, left_s)
            if received is not None and received.si_signo in FORWARDED and received.si_code != FROM_KERNEL:
                os.kill(self._process, received.si_signo)
