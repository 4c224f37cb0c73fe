"""A command line that uses all workers: started in every process of an MPI job, it speaks and fails as one command."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TypeVar

from pbd.command_line import print_error
from pbd.errors import PbdError, StoppedError
from pbd.system import launcher

START_LIMIT_S = 600
_LAST_STANDARD = 2
"""The descriptor of standard error."""
T = TypeVar("T")


def run(
    argv: Sequence[str] | None, program: str, parse: Callable[[Sequence[str], str], T], work: Callable[[T], int]
) -> int:
    """Run a command that uses all workers, in every process of an MPI job; return its exit code.

    Args:
        argv: the arguments; by default those of this process.
        program: the command as the user typed it; error lines begin with it.
        parse: returns the settings in the arguments of a program.
        work: does what the settings say, and returns the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with contextlib.nullcontext() if launcher.rank() in (None, 0) else _silence(), _lasting_output():
        try:
            settings = _start(lambda: parse(arguments, program))
            stop_on_signals()
            return work(settings)
        except PbdError as error:
            if "--verbose" in arguments:
                print_error(traceback.format_exc())
            print_error(f"{program}: {error}\n")
            return error.exit_code
        except KeyboardInterrupt:
            print_error(f"{program}: {StoppedError()}\n")
            return StoppedError.exit_code
        except Exception as error:
            from pbd.run_dir import error_files

            line = error_files.summary(error)
            if line is None or "--verbose" in arguments:
                print_error(traceback.format_exc())
            if line is not None:
                print_error(f"{program}: {line}\n")
            return PbdError.exit_code


def _start(parse: Callable[[], T]) -> T:
    """Return the settings; if an MPI rank fails to read them, it reports the error to the ranks that wait for it."""
    os.environ.setdefault(launcher.START_LIMIT, str(START_LIMIT_S))
    try:
        return parse()
    except Exception as error:
        if launcher.size() > 1:
            from pbd.executors.mpi import world

            world.report_failed_start(error if isinstance(error, PbdError) else PbdError(repr(error)))
        raise


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard the output of every rank but 0, which prints the same lines."""
    with (
        open(os.devnull, "w", encoding="utf-8") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield


@contextlib.contextmanager
def _lasting_output() -> Iterator[None]:
    """Let the command end with its exit code, whatever becomes of standard output and standard error.

    Characters that standard output cannot encode are replaced. What could not be written is discarded at the end, where
    Python would try again, and end with code 120. Standard descriptors that are closed are opened, lest a file or a
    connection get their numbers, to which libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):
                from pbd.progress import discard

                discard(stream)


def stop_on_signals() -> None:
    """Treat SIGTERM, Slurm's SIGUSR1 and a closed terminal (SIGHUP, unless under nohup) like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
