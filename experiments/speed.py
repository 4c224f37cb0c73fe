"""The paper's scheme against ours: seconds of the block phase, on the same network, images, epochs and seed.

Both schemes train the same blocks from the same first weights on the same batches, and must come to the same weights;
they differ in how often they compute the same things (see `paper_scheme`). They take turns, each measurement in a fresh
process whose workers have cores of their own; what is compared is the block phase, scoring included.

    python -m experiments.speed --teacher vgg16_half --dataset cifar10.npz --train-limit 5000 --csv speed.csv

A teacher is a file or a network's name, which gets random weights: speed does not depend on them.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import processes
from experiments.block_phase import SCHEMES, Measured, Setup
from experiments.csv_table import write_csv
from experiments.measured_runs import run_module
from experiments.time_breakdown import PARTS
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive, whole
from pbd.config import AUGMENTATIONS, BLOCK_INITS, BlockConfig, DataConfig, TrainingConfig
from pbd.errors import PbdError
from pbd.run_dir.journal import Journal
from pbd.system import backend

WIDTH = 110
IMAGE_SIZE = 32
LEARNING_RATE = TrainingConfig().learning_rate
Case = tuple[str, int]
"""A scheme and a number of workers."""


@dataclass(frozen=True)
class Row:
    """One scheme with one number of workers; ratios are medians over the repeats, of runs that stood side by side."""

    scheme: str
    workers: int
    seconds: float
    """The median."""
    fastest_s: float
    slowest_s: float
    times_as_fast: float | None
    """As the paper's scheme with as many workers; `None` where that was not measured, or does other work."""
    gain: float | None
    """Of these workers over one, in blocks trained per second; `None` where one was not measured."""


@dataclass(frozen=True)
class Difference:
    """How far the blocks of two runs lie apart."""

    largest: float = 0.0
    """Between any two weights."""
    relative: float = 0.0
    """Over the largest weight of the same variable."""

    def or_larger(self, other: "Difference") -> "Difference":
        """Return the larger of either."""
        return Difference(max(self.largest, other.largest), max(self.relative, other.relative))


def compare(one: Mapping[str, Mapping[str, np.ndarray]], other: Mapping[str, Mapping[str, np.ndarray]]) -> Difference:
    """Return how far two runs' blocks lie apart, given their weights by layer and by variable.

    Raises:
        PbdError: they are not of the same layers and shapes.
    """
    shapes = [{(a, b): w.shape for a, block in run.items() for b, w in block.items()} for run in (one, other)]
    if shapes[0] != shapes[1]:
        raise PbdError(f"both schemes must train the same blocks. Received: {sorted(one)} and {sorted(other)}.")
    found = Difference()
    for layer, key in shapes[0]:
        first, second = one[layer][key], other[layer][key]
        apart = float(np.max(np.abs(first - second)))
        found = found.or_larger(Difference(apart, apart / max(float(np.max(np.abs(first))), np.finfo(float).tiny)))
    return found


def weights_of(run_dir: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the weights of a run's blocks, by layer and by variable."""
    return {key.layer: dict(result.weights) for key, result in Journal(Path(run_dir)).committed_blocks().items()}


def measure(setup: Setup) -> Measured:
    """Run one block phase in processes of its own and return what it took.

    Raises:
        PbdError: it failed; the message is its last line.
    """
    Journal.create(setup.run_dir, {})
    executor = "mpi" if setup.workers > 1 else "serial"
    printed = run_module(executor, setup.workers, ["experiments.block_phase", processes.as_json(setup)])
    return Measured(**json.loads(printed.strip().splitlines()[-1]))


def cases(schemes: Sequence[str], workers: Sequence[int]) -> list[Case]:
    """Return what is measured: one worker has nobody to share a batch, or the machine, with."""
    alone = ("paper", "task")
    return [(scheme, count) for count in workers for scheme in schemes if scheme in alone or count > 1]


def alternate(
    setup: Setup, chosen: Sequence[Case], repeats: int, folder: Path
) -> Iterator[tuple[Case, Measured, Difference]]:
    """Measure the cases in turn; yield each run's case, what it took and how far it lies from the first run's blocks.

    Args:
        setup: of all runs; scheme, workers and run directory are filled in.
        chosen: what `cases` returned.
        repeats: runs of each case.
        folder: where the run directories go.
    """
    reference: dict[str, dict[str, np.ndarray]] = {}
    for repeat, (scheme, count) in itertools.product(range(repeats), chosen):
        run_dir = str(folder / f"{scheme}-{count}-{repeat}")
        measured = measure(dataclasses.replace(setup, scheme=scheme, workers=count, run_dir=run_dir))
        blocks = weights_of(run_dir)
        reference = reference or blocks
        yield (scheme, count), measured, compare(reference, blocks)


def summarise(seconds: Mapping[Case, Sequence[float]]) -> list[Row]:
    """Return a row for each case, given the seconds of its runs in the order in which they were made."""

    def ratio(over: Case, under: Case) -> float | None:
        if over not in seconds:
            return None
        work = under[1] if under[0] == "copies" else 1
        return work * statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    return [
        Row(
            scheme=scheme,
            workers=workers,
            seconds=statistics.median(taken),
            fastest_s=min(taken),
            slowest_s=max(taken),
            times_as_fast=None if scheme == "copies" else ratio(("paper", workers), (scheme, workers)),
            gain=ratio(("paper" if scheme == "paper" else "task", 1), (scheme, workers)),
        )
        for (scheme, workers), taken in seconds.items()
    ]


def as_table(rows: Sequence[Row], difference: Difference) -> Table:
    """Return the rows for a terminal."""
    table = Table(
        title="The block phase, scoring included",
        caption=f"Largest difference from the first run's weights: {difference.largest:.1e}; "
        f"of the largest weight of its kind: {difference.relative:.1e}.",
    )
    headings = ("scheme", "workers", "seconds, median (range)", "times as fast\nas the paper's", "over\none worker")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "scheme" else "right")
    for row in rows:
        seconds = f"{row.seconds:.1f} ({row.fastest_s:.1f}-{row.slowest_s:.1f})"
        ratios = ("-" if ratio is None else f"{ratio:.2f}" for ratio in (row.times_as_fast, row.gain))
        table.add_row(row.scheme, str(row.workers), seconds, *ratios)
    return table


def spending_table(spent: Mapping[Case, Sequence[Mapping[str, float]]]) -> Table:
    """Return where the first worker's seconds went, a column for each case; medians over its runs."""
    table = Table(title="Where the first worker's seconds go", caption="Data and teacher: what they take alone.")
    table.add_column("part")
    for scheme, workers in spent:
        table.add_column(f"{scheme}, {workers}", justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{statistics.median(run[part] for run in runs):.1f}" for runs in spent.values()))
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("speed", __doc__)
    add_what_is_trained(parser)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES[:3], help="which to measure")
    parser.add_argument("--workers", nargs="+", type=positive, default=[1, 2], metavar="N")
    parser.add_argument("--threads-per-worker", type=positive, default=1, help="and cores")
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each scheme and number of workers")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    settings = parser.parse_args(argv)
    settings.workers = sorted(set(settings.workers))
    TrainingConfig(learning_rate=settings.learning_rate)
    check_folder("--csv", settings.csv)
    return settings


def add_what_is_trained(parser: Parser) -> None:
    """Add the flags that fill in a `Setup`."""
    parser.add_argument(
        "--teacher", default="vgg16_half", help="a model file, vgg16_half, resnet56, or a built-in network"
    )
    parser.add_argument("--dataset", default=DataConfig().dataset, help="as in pbd-run")
    parser.add_argument("--train-limit", type=positive, metavar="N", help="as in pbd-run")
    parser.add_argument("--batch-size", type=positive, default=DataConfig().batch_size)
    parser.add_argument("--image-size", type=positive, metavar="N", help="pixels a side of images and network")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="flip_crop")
    parser.add_argument("--epochs", type=positive, default=2, help="for each block")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--block", default=BlockConfig().designs[0])
    parser.add_argument("--block-init", choices=BLOCK_INITS, default=BlockConfig().block_init)
    parser.add_argument("--seed", type=whole, default=0)


def as_setup(settings: argparse.Namespace, threads: int, teacher: str) -> Setup:
    """Return what is trained, with one worker by tasks; scheme, workers and run directory are to be filled in."""
    shared = ("train_limit", "batch_size", "image_size", "augment", "epochs", "learning_rate")
    shared += ("block", "block_init", "seed")
    chosen = {name: getattr(settings, name) for name in shared}
    return Setup("task", 1, threads, run_dir="", teacher=teacher, dataset=settings.dataset, **chosen)


def save_teacher(name: str, folder: Path, image_size: int | None) -> str:
    """Write the teacher, flat, to a file and return its path.

    Args:
        name: of the teacher, or its file.
        folder: of the file.
        image_size: pixels a side of a built-in network; by default 32.

    Raises:
        PbdError: there is no such teacher, or it cannot be used.
    """
    backend.load()
    from experiments.networks import load_teacher

    path = folder / "teacher.keras"
    load_teacher(name, image_size or IMAGE_SIZE).save(path)
    return str(path)


def run(settings: argparse.Namespace, console: Console) -> list[Row]:
    """Measure what the settings ask for; print each run as it ends, and the table."""
    found, spent, difference = {}, {}, Difference()
    with tempfile.TemporaryDirectory() as folder:
        teacher = save_teacher(settings.teacher, Path(folder), settings.image_size)
        setup = as_setup(settings, settings.threads_per_worker, teacher)
        chosen = cases(settings.schemes, settings.workers)
        for case, measured, apart in alternate(setup, chosen, settings.repeats, Path(folder)):
            found.setdefault(case, []).append(measured.seconds)
            if measured.spent:
                spent.setdefault(case, []).append(measured.spent)
            difference = difference.or_larger(apart)
            console.print(f"{case[0]}, workers: {case[1]}: {measured.seconds:.1f} s", highlight=False)
    rows = summarise(found)
    console.print(as_table(rows, difference))
    if spent:
        console.print(spending_table(spent))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        rows = run(settings, Console(width=None if Console().is_terminal else WIDTH))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run("speed", command, argv)


if __name__ == "__main__":
    sys.exit(main())
