"""Compression steps alone and in a row, with equal epochs, in 8-bit integers where they are deployed.

    python -m experiments.steps --quick
    python -m experiments.steps --teacher resnet20.keras --dataset cifar10.npz --augment flip_crop --epochs 20

Rows: the teacher; the student under a budget, and the same trained for 8-bit integers; the teacher fine-tuned; 50% of
its filters removed by L1, then trained on the labels, or with distillation; the teacher trained for 8-bit integers.
Each is trained for --epochs passes over the images, the second student for --qat-epochs more. Distillation is on the
teacher and the labels, half and half.

Each recipe is a run directory of its own under --runs, so that a table that was stopped goes on, and several processes
can do some recipes each (--only); a last call, without --only, prints the table. Speeds are measured
beside the teacher in 8-bit integers, in one process, on one thread; rows of different recipes compare by these ratios.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import pbd
from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config.settings import PRECISIONS

if TYPE_CHECKING:
    from pbd.compression.step import Step
    from pbd.records import Deployment
    from pbd.records.recipe_report import RecipeReport, StepReport

NAME = "experiments.steps"
RECIPES = ("budget", "tuned", "filters", "filters_kd", "qat")
"""Their folders, in the order of the table."""
WIDTH = 170
QUICK_IMAGES = 1024
DESIGNS = ("merge", "drop", "narrow_r75", "narrow_r50", "spatial_svd_r50", "spatial_svd_r33")
"""What a residual network gains from in 8-bit integers (docs/measurements/2026-11-budgets.md)."""
DISTILLATION: dict[str, Any] = {"temperature": 2.0, "distillation_weight": 0.5}
"""The best of those measured in 8-bit integers (likewise); with the loss `mixed`."""


@dataclass(frozen=True)
class Row:
    """A network in one target; accuracies are fractions, on the test images."""

    network: str
    epochs: int
    params_share: float
    macs_share: float
    target: str
    accuracy: float | None
    """In float32."""
    int8_accuracy: float | None
    lost_points: float | None
    """In 8-bit integers, of what the teacher has in 8-bit integers."""
    speedup_1: float
    """In 8-bit integers, times as fast as the teacher in 8-bit integers, with one image in a pass."""
    speedup_32: float


@dataclass(frozen=True)
class Recipe:
    """Steps in a row, and the row of the table that each of them makes; a step without a name has none."""

    folder: str
    steps: "Sequence[Step]"
    rows: Sequence[str | None]
    epochs: Sequence[int]


def recipes(settings: argparse.Namespace) -> list[Recipe]:
    """Return the recipes, in the order of the table."""
    epochs, more, rate = settings.epochs, settings.qat_epochs, settings.learning_rate
    training: dict[str, Any] = {"epochs": epochs, "learning_rate": rate, "keep": "last"}
    distilled = pbd.FineTune(loss="mixed", **training, **DISTILLATION)
    integers = f"{settings.targets[0]}-int8"
    half: dict[str, Any] = {"ratio": 0.5, "importance": "l1"}
    budgeted = pbd.ReplaceBlocks(
        block=tuple(settings.blocks),
        budget=settings.budget,
        target_batch=32,
        epochs=0,
        fine_tune_epochs=epochs,
        fine_tune_loss="mixed",
        fine_tune_learning_rate=rate,
        fine_tune_keep="last",
        **DISTILLATION,
    )
    return [
        Recipe(
            "budget",
            [budgeted, pbd.Quantize(method="qat", target=integers, epochs=more)],
            [f"budget {settings.budget}", "budget > QAT"],
            [epochs, epochs + more],
        ),
        Recipe("tuned", [distilled], ["fine-tuning"], [epochs]),
        Recipe(
            "filters",
            [pbd.PruneFilters(**half), pbd.FineTune(loss="cross_entropy", **training)],
            ["L1 filters 50%, refitted", "L1 filters 50%, labels"],
            [0, epochs],
        ),
        Recipe(
            "filters_kd",
            [pbd.PruneFilters(**half), distilled],
            [None, "L1 filters 50%, KD"],
            [0, epochs],
        ),
        Recipe("qat", [pbd.Quantize(method="qat", target=integers, epochs=epochs)], ["QAT"], [epochs]),
    ]


def rows_of(recipe: Recipe, report: "RecipeReport", targets: Sequence[str]) -> list[Row]:
    """Return the rows that a recipe adds, in each target."""
    named = zip(report.steps[1:], recipe.rows, recipe.epochs, strict=True)
    return [
        _row(name, epochs, step, report.steps[0], target)
        for step, name, epochs in named
        if name is not None
        for target in targets
    ]


def _row(name: str, epochs: int, step: "StepReport", teacher: "StepReport", target: str) -> Row:
    deployed, of_teacher = _int8(step, target), _int8(teacher, target)
    lost = None
    if deployed.test_accuracy is not None and of_teacher.test_accuracy is not None:
        lost = 100 * (of_teacher.test_accuracy - deployed.test_accuracy)
    return Row(
        network=name,
        epochs=epochs,
        params_share=step.network.params / teacher.network.params,
        macs_share=step.network.macs / teacher.network.macs,
        target=target,
        accuracy=step.network.test_accuracy,
        int8_accuracy=deployed.test_accuracy,
        lost_points=lost,
        speedup_1=_speedup(deployed, 1),
        speedup_32=_speedup(deployed, 32),
    )


def _int8(step: "StepReport", target: str) -> "Deployment":
    return next(row for row in step.deployments if row.target == f"{target}-int8")


def _speedup(deployed: "Deployment", batch: int) -> float:
    from pbd.report import deployments

    latency = deployments.at_batch(deployed, batch)
    assert latency is not None, "a run measures both"
    assert latency.times_as_fast_as_int8 is not None, "the targets have 8-bit integers"
    return latency.times_as_fast_as_int8


def run(recipe: Recipe, settings: argparse.Namespace) -> "RecipeReport":
    """Do a recipe, or what is missing of it."""
    folder = settings.runs / recipe.folder
    config = pbd.RunConfig.of(
        train_limit=settings.train_limit,
        batch_size=settings.batch_size,
        augment=settings.augment,
        precision=settings.precision,
        target=f"{settings.targets[0]}-int8",
    )
    return pbd.compress(
        steps=recipe.steps,
        config=config,
        teacher=settings.teacher,
        dataset=settings.dataset,
        targets=settings.targets,
        executor="serial",
        run_dir=str(folder),
        resume=(folder / "run.json").exists(),
    ).report


def show(rows: Sequence[Row]) -> None:
    """Print the table, and in each target the fastest row."""
    headings = ("target", "network", "epochs", "parameters", "MACs", "float32", "int8", "points lost")
    table = Table(*headings, "x int8 teacher, 1 image", "32 images")
    for row in sorted(rows, key=lambda row: row.target):
        shares = (f"{row.params_share:.1%}", f"{row.macs_share:.1%}")
        quality = (_percent(row.accuracy), _percent(row.int8_accuracy), _points(row.lost_points))
        table.add_row(
            row.target, row.network, str(row.epochs), *shares, *quality, f"{row.speedup_1:.2f}", f"{row.speedup_32:.2f}"
        )
    console = Console(width=WIDTH)
    console.print(table)
    for target in dict.fromkeys(row.target for row in rows):
        in_target = [row for row in rows if row.target == target]
        one, many = max(in_target, key=lambda row: row.speedup_1), max(in_target, key=lambda row: row.speedup_32)
        console.print(f"Fastest in {target}: {one.network} (1 image), {many.network} (32 images).", highlight=False)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def compare(settings: argparse.Namespace) -> None:
    """Run what is missing, and print the table if all recipes are asked for."""
    check_folder("--csv", settings.csv)
    if settings.only:
        for recipe in recipes(settings):
            if recipe.folder in settings.only:
                run(recipe, settings)
        return
    rows: list[Row] = []
    for recipe in recipes(settings):
        report = run(recipe, settings)
        if not rows:
            rows += [_row("teacher", 0, report.steps[0], report.steps[0], target) for target in settings.targets]
        rows += rows_of(recipe, report, settings.targets)
    if settings.csv is not None:
        write_csv(rows, settings.csv)
    show(rows)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = Parser(NAME, __doc__ or "")
    parser.add_argument("--teacher", default="digits_cnn", help="model file or digits_cnn")
    parser.add_argument("--dataset", default="digits", help="as in pbd distill")
    parser.add_argument("--epochs", type=positive, help="passes of every training (default 20; --quick: 2)")
    parser.add_argument("--qat-epochs", type=positive, help="of the last step (default 4; --quick: 1)")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="of fine-tuning (default %(default)s)")
    parser.add_argument("--blocks", nargs="+", default=DESIGNS, help="designs to choose from, as in pbd distill")
    parser.add_argument(
        "--budget", default="latency:0.65", help="as in pbd distill, with 32 images (default %(default)s)"
    )
    parser.add_argument(
        "--targets", nargs="+", default=["openvino", "onnx"], help="the first one is that of the budget"
    )
    parser.add_argument("--quick", action="store_true", help="few epochs and training images")
    parser.add_argument("--train-limit", type=positive, help=f"training images (default: all; --quick: {QUICK_IMAGES})")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per step (default 64)")
    parser.add_argument("--augment", default="none", help="as in pbd distill")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of training, as in pbd distill")
    parser.add_argument("--runs", type=Path, default=Path("runs/steps"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=(), help="do these recipes, and print no table")
    settings = parser.parse_args(argv)
    settings.train_limit = settings.train_limit or (QUICK_IMAGES if settings.quick else None)
    settings.epochs = settings.epochs or (2 if settings.quick else 20)
    settings.qat_epochs = settings.qat_epochs or (1 if settings.quick else 4)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
