"""`pbd latency MODEL [MODEL ...]`: measure how long forward passes of model files take in Keras on this machine.

The models take turns; the first one is the reference. Times are medians over rounds, with quartiles.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbd import command_line
from pbd.command_line import Parser, path, positive
from pbd.errors import MissingInputError
from pbd.system.permissions import check_readable

if TYPE_CHECKING:
    from pbd.deploy.latency import ModelLatency


def main(argv: Sequence[str] | None = None, program: str = "pbd latency") -> int:
    """Run the command line; return the exit code."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments, program)
        rows = measure(settings)
        if settings.json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        else:
            Console().print(as_table(rows))

    return command_line.run(program, command, argv)


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Return the parsed command-line arguments.

    Raises:
        SystemExit: help was printed.
        UsageError: a flag or a value is wrong.
        MissingInputError: a model file does not exist or is not readable.
    """
    parser = Parser(program, __doc__ or "")
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", type=path, help="a .keras or .h5 file; the first is the reference"
    )
    parser.add_argument(
        "--batch-sizes", metavar="N", nargs="+", type=positive, default=[1, 32], help="images in a pass (default: 1 32)"
    )
    parser.add_argument("--threads", metavar="N", type=positive, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure models rewritten for inference, as pbd writes students (default); --no-fold: as they are",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table; times in seconds")
    settings = parser.parse_args(arguments)
    for name in settings.models:
        check_readable("a model file", name)
        if not Path(name).is_file():
            raise MissingInputError(f"a model file must exist. Received: {name!r}. Check the path.")
    return settings


def measure(settings: argparse.Namespace) -> "tuple[ModelLatency, ...]":
    """Load the models and measure them."""
    from pbd.system import devices, process  # load NumPy, which --help does not need

    with process.prepared(devices.Share(threads=settings.threads)):
        from pbd.deploy.latency import measure_latency
        from pbd.networks import files

        models = {name: files.load(name) for name in settings.models}
        return measure_latency(models, settings.batch_sizes, settings.fold)


def as_table(rows: "Iterable[ModelLatency]") -> Table:
    """Return the figures for a terminal, in milliseconds."""
    rows = tuple(rows)
    paths = {row.model for row in rows}
    names = {path: Path(path).name for path in paths}
    if len(set(names.values())) < len(paths):  # models of different folders may have the same file name
        names = {path: path for path in paths}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for heading in ("batch", "median, ms", "quartiles, ms", "times as fast", "rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(names[row.model]),
            str(row.batch),
            f"{1000 * row.seconds:.2f}",
            f"{1000 * row.q1_s:.2f} to {1000 * row.q3_s:.2f}",
            f"{row.times_as_fast:.2f}",
            str(row.rounds),
        )
    return table
