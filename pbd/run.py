"""`pbd distill`, `pbd-run` and `python -m pbd.run`: command line -> RunConfig -> a run -> exit code."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pbd.command_line import Parser, add_settings, path, read_settings
from pbd.config import RECIPE_HELP, RunConfig
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS
from pbd.pipeline import command as of_workers
from pbd.system import backend, launcher

PROGRAM = "pbd-run"


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
    return of_workers.run(argv, program, parse, _run, lambda config: config.execution.verbose)


def _run(config: RunConfig) -> int:
    from pbd.pipeline.sweep import run

    report = run(config, dedicated_process=True)
    if launcher.rank() in (None, 0):
        from pbd.pipeline import students
        from pbd.progress import LastingConsole
        from pbd.report import front, summary

        console = LastingConsole()
        console.print(summary(report))
        if config.student.sweep:
            text = front.render(students.read(Path(report.run_dir)))
            console.print(f"\n{text}", end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
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
    return RunConfig.of(**({} if file is None else read_settings(file)) | flags)


if __name__ == "__main__":
    sys.exit(command())
