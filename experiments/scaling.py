"""What the block phase is predicted to take with more workers than there are: by tasks, and sharing every batch.

Every layer is timed here, on one thread of one core; from that, `pbd-run`'s own planning predicts what it would choose
by.

    python -m experiments.scaling --teacher resnet56 --dataset cifar10.npz --workers 1 2 4 8 16 --network-gbit 10

Workers are taken to be alike, each with a core and a memory of its own. Gradients are taken to be added up in a ring
over links of that rate, so that each worker sends, and receives, nearly twice their size in every step.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments import block_phase, speed
from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.records import BlockTask
from pbd.run_dir.journal import Journal
from pbd.scheduling import schedulers
from pbd.scheduling.cost_table import CostTable, Workload
from pbd.system import devices

BYTES_PER_GBIT = 1e9 / 8
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Row:
    """What the block phase is predicted to take; gains are over one worker."""

    workers: int
    by_task_s: float
    by_task_gain: float
    shared_s: float | None
    """`None` where a block sees the whole batch, which can then not be shared."""
    shared_gain: float | None
    exchange_s: float
    """Of `shared_s`, the seconds in which gradients are added up."""


def predict(
    tasks: Sequence[BlockTask],
    table: CostTable,
    work: Workload,
    workers: Sequence[int],
    bytes_per_s: float,
    shares: bool,
) -> list[Row]:
    """Return a row for each number of workers.

    Args:
        tasks: what is trained.
        table: what each takes one worker.
        work: how many batches there are.
        workers: how many.
        bytes_per_s: that a worker can send and receive.
        shares: whether a batch can be shared.
    """
    from pbd.pipeline import plan

    costs, scheduler = table.costs(work, grouped=True), schedulers.choose("auto", grouped=True)
    gradients = GRADIENT_BYTES * sum(task.params for task in tasks)

    def by_task_s(count: int) -> float:
        return scheduler(tasks, costs, count).predicted_makespan_s

    rows, alone_s = [], by_task_s(1)
    for count in workers:
        exchange_s = 2 * (count - 1) / count * gradients / bytes_per_s
        shared = plan.share(tasks, table, work, count, count, exchange_s) if shares else None
        shared_s = shared.predicted_makespan_s if shared else None
        rows.append(
            Row(
                workers=count,
                by_task_s=by_task_s(count),
                by_task_gain=alone_s / by_task_s(count),
                shared_s=shared_s,
                shared_gain=alone_s / shared_s if shared_s else None,
                exchange_s=work.steps * exchange_s,
            )
        )
    return rows


def as_table(rows: Sequence[Row], source: str) -> Table:
    """Return the rows for a terminal, and where their times come from."""
    table = Table(title="The block phase, scoring included: predicted seconds", caption=source)
    for heading in ("workers", "by tasks", "over one", "sharing batches", "of it, exchange", "over one"):
        table.add_column(heading, justify="right")
    for row in rows:
        shared = ("-",) * 3
        if row.shared_s is not None and row.shared_gain is not None:
            shared = (f"{row.shared_s:.1f}", f"{row.exchange_s:.1f}", f"{row.shared_gain:.2f}")
        table.add_row(str(row.workers), f"{row.by_task_s:.1f}", f"{row.by_task_gain:.2f}", *shared)
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("scaling", __doc__)
    speed.add_what_is_trained(parser)
    parser.add_argument("--workers", nargs="+", type=positive, default=[1, 2, 4, 8, 16], metavar="N")
    parser.add_argument("--network-gbit", type=positive, default=10, metavar="N", help="per second, of every link")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    settings = parser.parse_args(argv)
    check_folder("--csv", settings.csv)
    return settings


def run(settings: argparse.Namespace) -> tuple[list[Row], str]:
    """Time the layers; return the predictions, and what they rest on."""
    block_phase.take_cores(0, threads=1)
    devices.Share(threads=1).claim()
    from pbd import blocks
    from pbd.costs import calibration

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        Journal.create(run_dir, {})
        teacher = speed.save_teacher(settings.teacher, Path(folder), settings.image_size)
        setup = speed.as_setup(settings, threads=1, teacher=teacher)
        context, tasks = block_phase.load(dataclasses.replace(setup, run_dir=str(run_dir)))
        work, load_s = calibration.load_workload(context, tuple(tasks))
        table = calibration.predict(context, tuple(tasks), work, load_s, None, None, "calibrate")
    bytes_per_s = BYTES_PER_GBIT * settings.network_gbit
    rows = predict(tasks, table, work, settings.workers, bytes_per_s, blocks.get(setup.block).per_image)
    return rows, table.source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        rows, source = run(settings)
        Console(width=None if Console().is_terminal else speed.WIDTH).print(as_table(rows, source))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run("scaling", command, argv)


if __name__ == "__main__":
    sys.exit(main())
