"""The command `pbd`: a table of subcommands, each in a module that is imported when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pbd import __version__, command_line
from pbd.command_line import Parser
from pbd.errors import UsageError, unknown_name
from pbd.system import backend


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand is implemented, and its line in `pbd --help`."""

    module: str
    function: str
    """Takes the arguments and the command as the user typed it; returns an exit code."""
    help: str


SUBCOMMANDS = {
    "distill": Subcommand("pbd.run", "main", "make a trained Keras CNN smaller"),
    "compress": Subcommand("pbd.compression.compress_command", "main", "prune, quantise, distil and more, in a row"),
    "status": Subcommand("pbd.status", "main", "show whether a run is complete, and what is missing"),
    "report": Subcommand("pbd.report.__main__", "main", "write the HTML page of a run, or compare several runs"),
    "export": Subcommand("pbd.deploy.export_command", "main", "write a model for another runtime, and compare it"),
    "quantize": Subcommand("pbd.compression.quantize_command", "main", "write a model in 8-bit integers for a runtime"),
    "latency": Subcommand("pbd.deploy.latency_command", "main", "measure how fast models are on this machine"),
    "analyse": Subcommand("pbd.compression.analyse_command", "main", "show what compression changed in a network"),
}


def command(argv: Sequence[str] | None = None) -> int:
    """Run `pbd SUBCOMMAND ...` in a process of its own; return the exit code."""
    backend.dedicate_process()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in SUBCOMMANDS:
        name, *rest = arguments
        subcommand = SUBCOMMANDS[name]
        function = getattr(importlib.import_module(subcommand.module), subcommand.function)
        return function(rest, f"pbd {name}")
    return command_line.run("pbd", _without_subcommand, arguments)


def _without_subcommand(arguments: Sequence[str]) -> None:
    """Print help or the version.

    Raises:
        UsageError: there is no such subcommand, or none was given.
    """
    width = max(map(len, SUBCOMMANDS))
    table = "\n".join(f"  {name:{width}}  {subcommand.help}" for name, subcommand in SUBCOMMANDS.items())
    parser = Parser(
        "pbd",
        f"Make trained Keras CNNs smaller by parallel blockwise distillation.\n\nsubcommands:\n{table}",
        usage="pbd SUBCOMMAND ...",
        epilog="pbd SUBCOMMAND --help lists the arguments of a subcommand.",
    )
    parser.add_argument("--version", action="version", version=f"pbd {__version__}", help="show the version and exit")
    parser.add_argument("subcommand", metavar="SUBCOMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)
    raise UsageError(unknown_name("subcommand", parser.parse_args(arguments).subcommand, SUBCOMMANDS))


if __name__ == "__main__":
    sys.exit(command())
