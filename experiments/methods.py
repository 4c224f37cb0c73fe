"""The methods side by side: parallel, craft, progressive, filter pruning, and distillation of the whole network.

    python -m experiments.methods --quick
    python -m experiments.methods --teacher vgg16.keras --dataset cifar10.npz --epochs 50 --tune-epochs 5 --workers 1 2

All methods see the same images. Blocks learn feature maps for --epochs passes over them, and there are --tune-epochs
passes in the network per replaced layer. What has no blocks gets as many passes in all as craft distillation: epochs
plus tune epochs, times the replaced layers. Filters are removed until the network has as many multiply-accumulates as
the student of the parallel method, and the whole network that is distilled is that student with random weights.

Each method is a recipe of one step in a directory of its own under --runs, so that a table that was stopped goes on.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import pbd
from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive

if TYPE_CHECKING:
    import keras

    from pbd.compression.step import Step
    from pbd.records.recipe_report import StepReport

WIDTH = 150
BLOCK = "two_layer"
"""The design of all methods of the sources."""
QUICK_IMAGES = 1024
BISECTIONS = 12
NO_SOURCE = "not in the sources"
SOURCES = {
    "parallel, the paper's recipe": "Table 7: 87.32 to 86.59 (-0.73)",
    "craft, top down": "Table 4.2: 86.45 to 86.59 (+0.14)",
    "craft, bottom up": "Table 4.2: 86.45 to 81.67 (-4.78)",
    "progressive": "Table 7: 86.61 to 83.56 (-3.05)",
    "L1 filter pruning": "Table 4.3: 93.3 to 94.0 (+0.7)",
}
"""Test accuracy of VGG16 on CIFAR-10, teacher and student. Table 7: arXiv:2012.03096; 4.2 and 4.3: Blakeney's
dissertation, Texas State University."""
REMARKS = (
    "The sources: VGG16 on CIFAR-10. Table 4.2: 50 epochs per layer, then 5 of the block alone. Table 4.3: L1 pruning "
    "(Li 2017) removes 34% of the multiply-accumulates, craft 74.6% (93.3 to 92.7); here both remove as much. Table 7: "
    "30 epochs per layer, then 20 of the student; the progressive one (Wang 2018) has a teacher of its own.",
    "Ours: the network, images and epochs given. Passes are those over the training images one after the other: the "
    "blocks of the parallel method share theirs.",
)


@dataclass(frozen=True)
class Row:
    """One method; accuracies are fractions, on the test images."""

    method: str
    workers: int
    accuracy: float
    change_points: float
    params_share: float
    macs_share: float
    passes: int
    seconds: float
    joules: float | None
    source: str


@dataclass(frozen=True)
class Method:
    """A method, and what it is made of."""

    name: str
    passes: int
    """Over the training images, one after the other."""
    step: "Callable[[], Step]"


@dataclass(frozen=True)
class Comparison:
    """The runs of one number of workers."""

    settings: argparse.Namespace
    workers: int

    def rows(self) -> list[Row]:
        """Run all methods that are not complete, and return their rows; the first one is that of the teacher."""
        from pbd import blocks
        from pbd.blockwise.tasks import enumerate_tasks

        start = self._run("teacher", pbd.FineTune(epochs=0))
        teacher = start.network("teacher")
        found = enumerate_tasks(teacher, blocks.get(BLOCK))
        replaced = sum(task.skip_reason is None for task in found)
        rows = [self._row(Method("teacher", 0, lambda: pbd.FineTune(epochs=0)), start, start.report.steps[0])]
        students: list[keras.Model] = []
        for method in self._methods(replaced, teacher, students):
            result = self._run(method.name, method.step())
            students.append(result.model)
            rows.append(self._row(method, result, result.report.steps[1]))
        return rows

    def _methods(self, replaced: int, teacher: "keras.Model", students: "list[keras.Model]") -> list[Method]:
        """Return the methods in order.

        Args:
            replaced: number of layers that are replaced.
            teacher: the network that they compress.
            students: networks of the methods before, as they are run; the first is that of the paper's recipe.
        """
        epochs, tune = self.settings.epochs, self.settings.tune_epochs
        parallel: dict[str, Any] = {"epochs": epochs, "fine_tune_epochs": replaced * tune, "accuracy_threshold": 0.0}
        paper = {"block": BLOCK, "block_init": "noise", "learning_rate": 0.01, "patience": 0}
        craft: dict[str, Any] = {"block": BLOCK, "epochs": epochs, "tune_epochs": tune}
        at_once, in_turn = epochs + replaced * tune, replaced * (epochs + tune)
        by_labels = {"fine_tune_loss": "cross_entropy"}
        names = iter(SOURCES)
        return [
            Method(next(names), at_once, lambda: pbd.ReplaceBlocks(**parallel, **paper, **by_labels)),
            Method("parallel, pbd's", at_once, lambda: pbd.ReplaceBlocks(block="decoupled_r2", **parallel)),
            Method(next(names), in_turn, lambda: pbd.Craft(order="top_down", **craft)),
            Method(next(names), in_turn, lambda: pbd.Craft(order="bottom_up", **craft)),
            Method(next(names), in_turn, lambda: pbd.Progressive(block=BLOCK, epochs=epochs + tune)),
            Method(next(names), in_turn, lambda: pruning(teacher, students[0], in_turn)),
            Method("whole network", in_turn, lambda: pbd.DistillInto(with_new_weights(students[0]), epochs=in_turn)),
        ]

    def _run(self, name: str, step: "Step") -> Any:
        settings = self.settings
        folder = settings.runs / f"{self.workers} workers" / name.replace(",", "").replace("'", "").replace(" ", "_")
        return pbd.compress(
            steps=[step],
            config=pbd.RunConfig.of(
                train_limit=settings.train_limit, batch_size=settings.batch_size, augment=settings.augment
            ),
            teacher=settings.teacher,
            dataset=settings.dataset,
            targets="keras",
            executor="serial" if self.workers == 1 else "dask",
            workers=self.workers,
            run_dir=str(folder),
            resume=(folder / "run.json").exists(),
        )

    def _row(self, method: Method, result: Any, step: "StepReport") -> Row:
        before, after = result.report.steps[0].network, step.network
        assert before.test_accuracy is not None, "data sets by name have labels"
        assert after.test_accuracy is not None
        return Row(
            method=method.name,
            workers=self.workers,
            accuracy=after.test_accuracy,
            change_points=100 * (after.test_accuracy - before.test_accuracy),
            params_share=after.params / before.params,
            macs_share=after.macs / before.macs,
            passes=method.passes,
            seconds=step.seconds,
            joules=step.energy_j,
            source=SOURCES.get(method.name, NO_SOURCE),
        )


def pruning(teacher: "keras.Model", student: "keras.Model", epochs: int) -> pbd.PruneFilters:
    """Return the step that removes filters until the teacher has as many multiply-accumulates as a student.

    Args:
        teacher: the network that is pruned.
        student: the network to compare with.
        epochs: passes over the training images afterwards.
    """
    from pbd.networks.cost import count_macs

    wanted, low, high = count_macs(student), 0.0, 1.0
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        low, high = (ratio, high) if pruned_macs(teacher, ratio) > wanted else (low, ratio)
    return pbd.PruneFilters(ratio=high, importance="l1", refit=False, epochs=epochs, loss="cross_entropy")


def pruned_macs(model: "keras.Model", ratio: float) -> int:
    """Return the multiply-accumulates that are left when this share of the channels of each group is removed."""
    from pbd.networks import channels
    from pbd.networks.cost import count_macs

    step = pbd.PruneFilters(ratio=ratio, importance="l1")
    subject: Any = SimpleNamespace(seed=0)  # scores by l1 look at the weights alone
    kept, _ = step.choose(model, step.groups(model), ratio, subject)
    return count_macs(channels.remove(model, {name: each.tolist() for name, each in kept.items()}))


def with_new_weights(student: "keras.Model") -> "keras.Model":
    """Return a copy of a network with random weights; statistics of the pixels are kept."""
    import keras

    keras.utils.set_random_seed(0)
    copy = keras.models.clone_model(student)
    for layer, of_student in zip(copy.layers, student.layers, strict=True):
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights(of_student.get_weights())
    return copy


def verdict(rows: Sequence[Row]) -> str:
    """Return whether top down was better than bottom up, in one sentence."""
    top, bottom = (next(row for row in rows if row.method == f"craft, {order}") for order in ("top down", "bottom up"))
    points = 100 * (top.accuracy - bottom.accuracy)
    outcome = "is better than" if points > 0 else "is not better than"
    return f"Craft: top down {outcome} bottom up here ({points:+.2f} points; Table 4.2: +4.92)."


def show(rows: Sequence[Row]) -> None:
    """Print the table and what differs from the sources."""
    headings = ("method", "workers", "test accuracy", "points", "parameters", "MACs", "passes", "seconds", "joules")
    table = Table(*headings, "VGG16 in the sources, %")
    for row in rows:
        measured = (f"{row.accuracy:.2%}", f"{row.change_points:+.2f}", f"{row.params_share:.1%}")
        spent = (f"{row.macs_share:.1%}", str(row.passes), f"{row.seconds:.1f}")
        joules = "not measured" if row.joules is None else f"{row.joules:.0f}"
        table.add_row(row.method, str(row.workers), *measured, *spent, joules, row.source)
    console = Console(width=WIDTH)
    console.print(table)
    for remark in (verdict(rows), *REMARKS):
        console.print(remark, highlight=False)


def compare(settings: argparse.Namespace) -> None:
    """Run what is missing, and print the table."""
    check_folder("--csv", settings.csv)
    rows = [row for workers in settings.workers for row in Comparison(settings, workers).rows()]
    if settings.csv is not None:
        write_csv(rows, settings.csv)
    show(rows)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = Parser("experiments.methods", __doc__ or "")
    parser.add_argument("--teacher", default="digits_cnn", help="model file or digits_cnn")
    parser.add_argument("--dataset", default="digits", help="as in pbd distill")
    parser.add_argument("--epochs", type=positive, help="passes for the blocks of a layer (default 10; --quick: 2)")
    parser.add_argument("--tune-epochs", type=positive, help="passes per layer in the network (default 2; --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="few epochs and training images")
    parser.add_argument("--train-limit", type=positive, help=f"training images (default: all; --quick: {QUICK_IMAGES})")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per step (default 64)")
    parser.add_argument("--augment", default="none", help="as in pbd distill")
    parser.add_argument("--workers", type=positive, nargs="+", default=[1], help="numbers of workers (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to this file")
    settings = parser.parse_args(argv)
    settings.train_limit = settings.train_limit or (QUICK_IMAGES if settings.quick else None)
    settings.epochs = settings.epochs or (2 if settings.quick else 10)
    settings.tune_epochs = settings.tune_epochs or (1 if settings.quick else 2)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.methods", lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
