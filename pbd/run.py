"""`python -m pbd.run`: the command line -> RunConfig -> distill() -> an exit code."""

import contextlib
import io
import os
import re
import signal
import sys
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any

from pbd.config import RunConfig
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, MissingInputError, PbdError, StoppedError, UsageError
from pbd.system import backend, launcher

START_LIMIT_S = 600
_BOX = "╭╮╰╯│─┌┐└┘├┤ \t"


@dataclass(frozen=True)
class _CommandLine(RunConfig):
    config: str | None = None
    """A TOML file with any of these settings, by the same names; flags win over it."""


def command() -> int:
    """Run the command line in a process of its own."""
    backend.skip_unused_imports()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see the README)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = launcher.rank() in (None, 0)
    with contextlib.nullcontext() if first else _silence():
        try:
            config = _start(arguments)
            _stop_on_signals()
            return _run(config)
        except PbdError as error:
            if "--verbose" in arguments:
                traceback.print_exc()
            print(f"pbd-run: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print(f"pbd-run: {StoppedError()}", file=sys.stderr)
            return StoppedError.exit_code
        except Exception:
            traceback.print_exc()
            return PbdError.exit_code


def _start(arguments: Sequence[str]) -> RunConfig:
    """Return the settings; one of several ranks that cannot read them tells the others, which would wait for it."""
    os.environ.setdefault(launcher.START_LIMIT, str(START_LIMIT_S))
    try:
        return parse(arguments)
    except Exception as error:
        if launcher.size() > 1:
            from pbd.executors.mpi import world

            world.report_failed_start(error if isinstance(error, PbdError) else PbdError(repr(error)))
        raise


def _run(config: RunConfig) -> int:
    from pbd.pipeline.distill import distill

    report = distill(config)
    if launcher.rank() in (None, 0):
        from rich.console import Console

        from pbd.report import summary

        console = Console()
        console.print(summary(report))
    return FINISHED_WITH_FAILED_BLOCKS if report.failed_layers else 0


def parse(arguments: Sequence[str]) -> RunConfig:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        SystemExit: help was asked for and printed.
    """
    import tyro

    default = RunConfig.of(**_toml_settings(arguments))
    parts = {part.name: getattr(default, part.name) for part in fields(RunConfig)}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            line = tyro.cli(
                tyro.conf.OmitArgPrefixes[_CommandLine],
                args=list(arguments),
                default=_CommandLine(**parts),
                prog="pbd-run",
                description="Make a trained Keras CNN small and fast by parallel blockwise distillation.",
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(_one_line(said.getvalue())) from None
    return RunConfig(**{name: getattr(line, name) for name in parts})


def _toml_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Read the file after `--config`, whose settings become the defaults of the flags."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?")
    path = parser.parse_known_args(arguments)[0].config
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise MissingInputError(f"the settings file must be readable. Received: {path!r}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the settings file must be TOML. Received: {path!r}: {error}.") from error
    return {name.replace("-", "_"): value for name, value in settings.items()}


def _one_line(box: str) -> str:
    """Take the message out of the frame that the parser draws around it."""
    lines = [line.strip(_BOX) for line in box.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    message = re.split("For full helptext|Argument helptext", message)[0]
    return re.sub("^Error parsing [a-z_]+: ", "", message).strip().rstrip(".:") + ". See pbd-run --help."


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let only rank 0 speak: the others would say the same."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _stop_on_signals() -> None:
    """Treat a termination request (SIGTERM; Slurm's SIGUSR1; a closed terminal, but for nohup) like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(command())
