"""A command line that uses all workers: all ranks together print one output and return one exit code."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pbd import stop_signals
from pbd.command_line import print_error
from pbd.errors import PbdError, StoppedError
from pbd.streams import lasting_output
from pbd.system import launcher

START_LIMIT_S = 600
T = TypeVar("T")


def run(
    argv: Sequence[str] | None,
    program: str,
    parse: Callable[[Sequence[str], str], T],
    work: Callable[[T], int],
    is_verbose: Callable[[T], bool] = lambda settings: False,
) -> int:
    """Run a command that uses all workers, in every process of an MPI job; return its exit code.

    Args:
        argv: the arguments; by default those of this process.
        program: the command as the user typed it; error lines begin with it.
        parse: returns the settings in the arguments of a program.
        work: does what the settings say, and returns the exit code.
        is_verbose: returns whether the settings ask for the tracebacks of errors.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in arguments  # until they are read
    silenced = contextlib.nullcontext() if launcher.rank() in (None, 0) else _silence()
    with silenced, lasting_output(), stop_signals.raised():
        try:
            settings = _start(lambda: parse(arguments, program))
            verbose = is_verbose(settings)
            return work(settings)
        except PbdError as error:
            if verbose:
                print_error(traceback.format_exc())
            print_error(f"{program}: {error}\n")
            return error.exit_code
        except KeyboardInterrupt:
            print_error(f"{program}: {StoppedError()}\n")
            return StoppedError.exit_code
        except Exception as error:
            from pbd.run_dir import error_files

            line = error_files.summary(error)
            if line is None or verbose:
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
