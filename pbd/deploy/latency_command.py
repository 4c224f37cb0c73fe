"""`pbd latency MODEL [MODEL ...]`: measure how long forward passes of models take in other runtimes on this machine.

Each model is exported to each target. The files take turns; the first model in the first target is the reference. Times
are medians over rounds, with quartiles.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pbd import command_line
from pbd.command_line import Parser, path, positive
from pbd.deploy import file_commands
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
            command_line.print_output(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        else:
            from pbd.progress import LastingConsole  # loads NumPy, which --help does not need

            LastingConsole().print(as_table(rows))

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
    parser.add_argument(
        "--target",
        metavar="NAME",
        nargs="+",
        default=[],
        help="openvino, onnx, litert, each also with -int8, keras, keras-gpu or saved_model (default: the first "
        "installed, in float32 and in 8-bit integers)",
    )
    parser.add_argument("--threads", metavar="N", type=positive, default=1, help="CPU threads (default: 1)")
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
        return measure_latency(models, settings.batch_sizes, settings.target, settings.threads)


def as_table(rows: "Iterable[ModelLatency]") -> Table:
    """Return the figures for a terminal: size of the file in kB, memory in MB, times in milliseconds."""
    rows = tuple(rows)
    names = file_commands.short_names({row.model for row in rows})
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold", min_width=12)
    table.add_column("target", no_wrap=True)
    for heading in ("kB", "MB", "batch", "median, ms", "quartiles, ms", "speedup"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(names[row.model]),
            row.target,
            f"{row.size_bytes / 1000:.0f}",
            "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.1f}",
            str(row.batch),
            f"{1000 * row.seconds:.3f}",
            f"{1000 * row.q1_s:.3f}-{1000 * row.q3_s:.3f}",
            f"{row.times_as_fast:.2f}",
        )
    return table
