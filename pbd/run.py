"""`pbd distill`, `pbd-run` and `python -m pbd.run`: command line -> RunConfig -> a run -> exit code."""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from pbd.command_line import Parser, add_settings, path, read_settings
from pbd.config import RECIPE_HELP, RunConfig
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, PbdError, StoppedError
from pbd.system import backend, launcher

PROGRAM = "pbd-run"
START_LIMIT_S = 600


def command(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line in a process of its own; return the exit code."""
    backend.dedicate_process()
    return main(argv, program)


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line; return the exit code (see `pbd.errors`).

    Args:
        argv: the arguments; by default those of this process.
        program: the command as the user typed it; error lines begin with it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with contextlib.nullcontext() if launcher.rank() in (None, 0) else _silence():
        try:
            config = _start(arguments, program)
            _stop_on_signals()
            return _run(config)
        except PbdError as error:
            if "--verbose" in arguments:
                traceback.print_exc()
            print(f"{program}: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print(f"{program}: {StoppedError()}", file=sys.stderr)
            return StoppedError.exit_code
        except Exception as error:
            from pbd.run_dir import error_files

            line = error_files.summary(error)
            if line is None or "--verbose" in arguments:
                traceback.print_exc()
            if line is not None:
                print(f"{program}: {line}", file=sys.stderr)
            return PbdError.exit_code


def _start(arguments: Sequence[str], program: str) -> RunConfig:
    """Return the settings; if an MPI rank fails to read them, it reports the error to the ranks that wait for it."""
    os.environ.setdefault(launcher.START_LIMIT, str(START_LIMIT_S))
    try:
        return parse(arguments, program)
    except Exception as error:
        if launcher.size() > 1:
            from pbd.executors.mpi import world

            world.report_failed_start(error if isinstance(error, PbdError) else PbdError(repr(error)))
        raise


def _run(config: RunConfig) -> int:
    from pbd.pipeline.sweep import run

    report = run(config, dedicated_process=True)
    if launcher.rank() in (None, 0):
        from rich.console import Console

        from pbd.pipeline import students
        from pbd.report import front, summary

        Console().print(summary(report))
        if config.student.sweep:
            print(f"\n{front.render(students.read(Path(report.run_dir)))}", end="")
    return FINISHED_WITH_FAILED_BLOCKS if report.failed_blocks else 0


def parse(arguments: Sequence[str], program: str = PROGRAM) -> RunConfig:
    """Return the settings of a run: flags, then the file that `--config` names, then the defaults.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the settings file cannot be read.
        SystemExit: help was printed.
    """
    parser = Parser(
        program,
        "Make a trained Keras CNN smaller by parallel blockwise distillation.",
        argument_default=argparse.SUPPRESS,  # only flags that are given override the file's values
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", type=path, help="A TOML file with any of these settings; flags override it."
    )
    parser.add_argument("--recipe", metavar="NAME", help=RECIPE_HELP)
    add_settings(parser, RunConfig())
    flags = vars(parser.parse_args(arguments))
    file = flags.pop("config", None)
    return RunConfig.of(**(read_settings(file) if file else {}) | flags)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard the output of every rank but 0, which prints the same lines."""
    with (
        open(os.devnull, "w", encoding="utf-8") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield


def _stop_on_signals() -> None:
    """Treat SIGTERM, Slurm's SIGUSR1 and a closed terminal (SIGHUP, unless under nohup) like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(command())
