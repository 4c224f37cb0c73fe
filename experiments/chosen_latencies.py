"""Compare the predicted latency of networks that the solver chooses under budgets with their measured latency.

The damages of the blocks are random, and so are the weights, on which speed does not depend: no image is needed.
All latencies are measured as in a run.

    python -m experiments.chosen_latencies --teacher resnet20.keras --target onnx-int8 openvino-int8
"""

import argparse
import collections
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments.csv_table import write_csv
from experiments.latency import add_measurement_arguments, installed, use_one_thread
from pbd import command_line
from pbd.command_line import Parser, check_folder, whole
from pbd.system import backend

if TYPE_CHECKING:
    import keras

    from pbd.pipeline.proposals import Proposer
    from pbd.records import BlockResult, BlockTask
    from pbd.student.builder import Assembled

NAME = "experiments.chosen_latencies"
BUDGETS = (0.8, 0.65, 0.5)
DESIGNS = ("merge", "drop", "narrow_r75", "narrow_r50", "spatial_svd_r50", "spatial_svd_r33")


@dataclass(frozen=True)
class Row:
    """A network that was chosen."""

    target: str
    batch: int
    budget: float
    """Latency, of the teacher's."""
    predicted: float
    """Latency, of the teacher's."""
    measured: float
    """Latency, of the teacher's."""
    error: float
    """Predicted over measured, less 1."""
    blocks: str
    """Number of blocks of each design."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser(NAME, __doc__)
    parser.add_argument("--teacher", default="resnet20", help="a model file, or a network of experiments.networks")
    parser.add_argument(
        "--budget", nargs="+", type=float, default=list(BUDGETS), metavar="SHARE", help="of the teacher's latency"
    )
    parser.add_argument("--block", nargs="+", default=list(DESIGNS), metavar="NAME", help="designs to choose from")
    parser.add_argument("--seed", type=whole, default=0, help="of the random damages")
    add_measurement_arguments(parser)
    settings = parser.parse_args(argv)
    check_folder("--csv", settings.csv)
    return settings


def proposer(teacher: "keras.Model", settings: argparse.Namespace, target: str, batch: int) -> "Proposer":
    """Return the proposer of a run whose blocks have random damages and random weights."""
    import numpy as np

    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks
    from pbd.config import RunConfig
    from pbd.pipeline.budget_problem import BudgetProblem
    from pbd.pipeline.proposals import Proposer
    from pbd.progress import ProgressDisplay
    from pbd.records import BlockResult

    generator = np.random.default_rng(settings.seed)
    tasks = enumerate_tasks(teacher, *map(blocks.get, settings.block))
    trained = {task.key: task for task in tasks if task.skip_reason is None}
    results = {
        key: BlockResult(key.layer, "trained", key.design, val_kl=float(np.exp(generator.normal()))) for key in trained
    }
    config = RunConfig().replace(target=target, target_batch=batch)

    def assembled(accepted: "Mapping[str, BlockResult]") -> "Assembled":
        return _assembled(teacher, tasks, accepted)

    return Proposer(BudgetProblem(teacher, tasks, results, config, ProgressDisplay()), assembled)


def _assembled(
    teacher: "keras.Model", tasks: "Sequence[BlockTask]", accepted: "Mapping[str, BlockResult]"
) -> "Assembled":
    """Return the student of blocks with their first weights; nothing is measured on images."""
    from dataclasses import replace
    from types import SimpleNamespace

    from pbd import blocks
    from pbd.student.assemble import assemble
    from pbd.student.builder import Assembled

    layers = {task.layer.name: task.layer for task in tasks}
    built = {
        name: replace(one, weights=blocks.get_weights(blocks.build_block(blocks.get(one.design), layers[name], seed=0)))
        for name, one in accepted.items()
    }
    unmeasured: Any = SimpleNamespace(kl=0.0)
    return Assembled(assemble(teacher, tasks, built), unmeasured)


def rows_of(teacher: "keras.Model", settings: argparse.Namespace, target: str) -> Iterator[Row]:
    """Yield a row for each budget and batch size in a target."""
    from pbd.config import budgets

    for batch in settings.batch_sizes:
        made = proposer(teacher, settings, target, batch)
        for budget in settings.budget:
            chosen = made.measure(made.best([budgets.parse(f"latency:{budget}")], 1), ["latency"])
            predicted, measured = chosen.report.predicted["latency"], chosen.report.measured["latency"]
            counts = collections.Counter(result.design for result in chosen.blocks.values())
            designs = ", ".join(f"{count} {design}" for design, count in sorted(counts.items()))
            yield Row(target, batch, budget, predicted, measured, predicted / measured - 1, designs)


def as_table(rows: Sequence[Row]) -> Table:
    """Return the table."""
    table = Table(title="Latency of chosen networks, of the teacher's. One thread")
    for heading in ("target", "batch", "budget", "predicted", "measured", "error", "blocks"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        shares = f"{row.budget:.1%}", f"{row.predicted:.1%}", f"{row.measured:.1%}", f"{row.error:+.1%}"
        table.add_row(row.target, str(row.batch), *shares, row.blocks)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""

    def command(arguments: Sequence[str]) -> None:
        settings, console = parse(arguments), Console(width=None if Console().is_terminal else 140)
        use_one_thread()
        backend.load()
        from experiments.networks import load_teacher

        teacher, rows = load_teacher(settings.teacher, 32), list[Row]()
        for target in settings.target or installed(console):
            rows += rows_of(teacher, settings, target)
        console.print(as_table(rows))
        if settings.csv is not None:
            write_csv(rows, settings.csv)

    return command_line.run(NAME, command, argv)


if __name__ == "__main__":
    sys.exit(main())
