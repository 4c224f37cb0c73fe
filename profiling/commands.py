"""A command that runs beside us: it gets the signals that we get, and we learn at once that it ended."""

import os
import signal
import time
from collections.abc import Sequence
from types import TracebackType

from pbd.errors import MissingInputError

FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
FROM_KERNEL = 0x80
"""`si_code` of what a terminal sends, to the command as well, so that it is not sent on (Linux' SI_KERNEL)."""
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Command:
    """A context in which signals wait until they are sent on; threads that start within leave them alone, too.

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
        """Start it, with signals as we found them.

        Raises:
            MissingInputError: there is no such program, or it may not be run.
        """
        how = {"setsigmask": self._mask, "setsigdef": IGNORED_BY_PYTHON}
        try:
            self._process = os.posix_spawnp(self._argv[0], self._argv, os.environ, **how)
        except OSError as error:
            raise MissingInputError(
                f"the command must be a program. Received: {self._argv[0]!r}: {error.strerror}."
            ) from error

    def wait(self, seconds: float) -> int | None:
        """Wait so long, sending signals on, or until it ends.

        Returns:
            Its exit code, 128 and the signal's number where one ended it, as in a shell; `None` while it runs.
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
            came = signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, left_s)
            if came is not None and came.si_signo in FORWARDED and came.si_code != FROM_KERNEL:
                os.kill(self._process, came.si_signo)
