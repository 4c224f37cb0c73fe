"""Compare the predicted latency of networks assembled from measured pieces with their measured latency.

Random networks of a teacher (a design and a width for each layer, branches left out) are predicted twice: by the pieces
and the teacher's latency, and by a model that is corrected with some further networks, which are marked with *.

    python -m experiments.latency_model --teacher resnet20.keras --target onnx openvino-int8 --networks 8
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from experiments.csv_table import write_csv
from experiments.latency import add_measurement_arguments, installed, use_one_thread
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive, whole
from pbd.system import backend

if TYPE_CHECKING:
    from experiments.assembled_networks import Assembled, Assembler

DESIGNS = ("spatial_svd_r50", "spatial_svd_r33", "decoupled_r1", "decoupled_r2")


@dataclass(frozen=True)
class Row:
    """A network in a target with a batch size."""

    target: str
    batch: int
    network: str
    seconds: float
    """Measured."""
    by_teacher: float
    """Prediction over measured time; of a model that has seen the teacher."""
    corrected: float
    """The same of a model that has also seen the first random networks."""
    fitted: bool
    """Whether the corrected model has seen the network."""
    unique_pieces: int
    pieces_s: float
    """CPU time that writing and measuring the pieces took, for all batch sizes; less if some were cached."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("latency_model", __doc__)
    parser.add_argument("--teacher", default="resnet20", help="a model file, or a network of experiments.networks")
    parser.add_argument("--networks", type=positive, default=8, metavar="N", help="random networks")
    parser.add_argument("--fitted", type=whole, default=2, metavar="N", help="of these, seen by the corrected model")
    parser.add_argument("--block", nargs="+", default=list(DESIGNS), metavar="NAME", help="designs to draw from")
    parser.add_argument("--seed", type=whole, default=0, help="of the random networks")
    add_measurement_arguments(parser)
    settings = parser.parse_args(argv)
    check_folder("--csv", settings.csv)
    return settings


def networks_of(settings: argparse.Namespace) -> "tuple[Assembler, dict[str, Assembled]]":
    """Return the teacher and the random networks, by name.

    Raises:
        PbdError: the teacher cannot be used, or a design is unknown.
    """
    import numpy as np

    from experiments.assembled_networks import Assembler
    from experiments.networks import load_teacher

    assembler = Assembler(load_teacher(settings.teacher, 32), settings.block)
    generator = np.random.default_rng(settings.seed)
    networks = {"teacher": assembler.teacher()}
    networks |= {f"random {number}": assembler.random(generator) for number in range(1, settings.networks + 1)}
    return assembler, networks


def rows_of(
    assembler: "Assembler", networks: "dict[str, Assembled]", target_name: str, settings: argparse.Namespace
) -> Iterator[Row]:
    """Measure pieces and networks in a target, and yield a row for each batch size and network.

    Args:
        assembler: of the networks.
        networks: by name, the teacher first.
        target_name: of the target.
        settings: see `parse`.
    """
    from experiments.assembled_networks import pieces_of
    from pbd.deploy import piece_times, targets
    from pbd.deploy.latency_model import LatencyModel, MeasuredNetwork

    target, batch_sizes = targets.get_timed(target_name), settings.batch_sizes
    pieces = pieces_of(assembler, list(networks.values()))
    started_s = time.process_time()
    times_s = piece_times.measure(pieces, target, batch_sizes)
    pieces_s = time.process_time() - started_s
    seconds = piece_times.measure_networks({name: each.model for name, each in networks.items()}, target, batch_sizes)
    for batch in batch_sizes:
        measured = [MeasuredNetwork(each.chosen, seconds[batch][name]) for name, each in networks.items()]
        model = LatencyModel(times_s[batch])
        by_teacher = model.corrected(measured[:1]).errors(measured)
        corrected = model.corrected(measured[: settings.fitted + 1]).errors(measured)
        for number, (name, before, after) in enumerate(zip(networks, by_teacher, corrected, strict=True)):
            seen, unique = number <= settings.fitted, len(set(times_s[batch].values()))
            yield Row(target_name, batch, name, measured[number].seconds, 1 + before, 1 + after, seen, unique, pieces_s)


def as_table(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each target and batch size: each network's predicted over measured time.

    The two last columns are the largest errors: of the model that has seen only the teacher, and of the corrected one
    on the networks that it has not seen.
    """
    names = list(dict.fromkeys(row.network for row in rows))
    table = Table(title="Predicted over measured latency, corrected model; * seen by it. One thread")
    for heading in ("target", "batch", "ms"):
        table.add_column(heading, no_wrap=True)
    for name in names[1:]:
        seen = any(row.fitted for row in rows if row.network == name)
        table.add_column(name.removeprefix("random ") + "*" * seen, justify="right")
    for heading in ("error, teacher", "corrected", "pieces", "s"):
        table.add_column(heading, justify="right")
    for target, batch in dict.fromkeys((row.target, row.batch) for row in rows):
        line = [row for row in rows if (row.target, row.batch) == (target, batch)]
        others = line[1:]
        unseen = [abs(row.corrected - 1) for row in others if not row.fitted]
        table.add_row(
            target,
            str(batch),
            f"{1000 * line[0].seconds:.3g}",
            *(f"{row.corrected:.3f}" for row in others),
            f"{max(abs(row.by_teacher - 1) for row in others):.1%}",
            f"{max(unseen):.1%}" if unseen else "-",
            str(line[0].unique_pieces),
            f"{line[0].pieces_s:.0f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings, console = parse(arguments), Console(width=None if Console().is_terminal else 140)
        use_one_thread()
        backend.load()
        assembler, networks = networks_of(settings)
        rows: list[Row] = []
        for target in settings.target or installed(console):
            rows += rows_of(assembler, networks, target, settings)
        console.print(as_table(rows))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run("latency_model", command, argv)


if __name__ == "__main__":
    sys.exit(main())
