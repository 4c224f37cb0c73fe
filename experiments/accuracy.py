"""What each part of the method is worth: from the paper's recipe to pbd's, a step at a time, in one table.

All rows have the same teacher, data, epochs and seed, and every profitable convolution is replaced:

    python -m experiments.accuracy --teacher resnet20.keras --dataset cifar10.npz --train-limit 20000 --csv accuracy.csv

Each row is one run of pbd in a directory of its own under --runs: a table that was stopped goes on where it was.
In the row without labels, the validation figures are agreements with the teacher. A built-in teacher is trained for
each split of the data, so that row has another one: give a file.

Validation images are a part of the training images by default. A teacher that was trained on these is more accurate on
them than on new images, so that accuracy targets are out of reach; --validation-from test takes half of the test ones.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import pbd
from experiments.csv_table import write_csv
from pbd import command_line
from pbd.command_line import Parser, check_folder
from pbd.errors import PbdError, UsageError, unknown_name

WIDTH = 140
PAPER = {
    "block": "two_layer",
    "block_init": "noise",
    "fine_tune_loss": "cross_entropy",
    "learning_rate": 0.01,
    "patience": 0,
}
DECOUPLED = {"block": "decoupled_r2", "fine_tune_loss": "kd_mse"}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "+ teacher's logits": PAPER | {"fine_tune_loss": "kd_mse"},
    "+ kernel": PAPER | {"fine_tune_loss": "kd_mse", "block_init": "kernel"},
    "+ decoupled": DECOUPLED | {"block_init": "kernel"},
    "+ least squares": DECOUPLED | {"block_init": "fitted"},
    "no labels": DECOUPLED | {"block_init": "fitted", "labels": False},
    "accuracy_target": DECOUPLED | {"block_init": "fitted", "target_accuracy_drop": 0.01},
}
"""Each adds to the one before it; the last two vary the one they follow."""


@dataclass(frozen=True)
class Row:
    """One recipe; accuracies are fractions, the test accuracy by the labels even where the run had none."""

    recipe: str
    replaced: int
    nmse: float
    swapped_mean: float
    swapped_worst: float
    assembled: float
    test_accuracy: float
    drop_points: float
    params: int
    params_share: float
    macs_share: float
    blocks_s: float
    student_s: float
    """Assembling and fine-tuning."""


def run(recipe: str, common: dict[str, Any], runs: Path) -> Row:
    """Run one recipe, or take its report where it has been run, and return its row."""
    directory = runs / recipe.removeprefix("+ ").replace(" ", "_").replace("'", "")
    settings = common | RECIPES[recipe] | {"run_dir": str(directory), "resume": (directory / "run.json").is_file()}
    report = pbd.distill(**settings).report
    trained = [row for row in report.blocks if row.nmse is not None]
    if not trained:
        raise PbdError(f"{recipe}: no block could be trained. See {directory / 'summary.txt'}.")
    swapped = [row.val_accuracy if row.val_accuracy is not None else row.val_agreement for row in trained]
    assembled = report.assembled.val_accuracy
    teacher, student = test_accuracies(report, common)
    return Row(
        recipe=recipe,
        replaced=sum(row.status == "accepted" for row in report.blocks),
        nmse=float(np.mean([row.nmse for row in trained])),
        swapped_mean=float(np.mean(swapped)),
        swapped_worst=min(swapped),
        assembled=report.assembled.val_agreement if assembled is None else assembled,
        test_accuracy=student,
        drop_points=100 * (teacher - student),
        params=report.student.params,
        params_share=report.student.params / report.teacher.params,
        macs_share=report.student.macs / report.teacher.macs,
        blocks_s=report.timing.distill_s,
        student_s=report.timing.fine_tune_s,
    )


def test_accuracies(report: pbd.RunReport, common: dict[str, Any]) -> tuple[float, float]:
    """Return the test accuracy of teacher and student, by the labels, which a run without labels did not look at."""
    if report.student.test_accuracy is not None:
        return report.teacher.test_accuracy, report.student.test_accuracy
    import keras

    from pbd import data
    from pbd.learning import metrics
    from pbd.pipeline import built_in

    models = [keras.models.load_model(facts.path, compile=False) for facts in (report.teacher, report.student)]
    config = pbd.RunConfig.of(**common)
    wanted = replace(config.data, preprocess=built_in.preprocessing(config.teacher.teacher))
    data = data.load(wanted, config.seed, models[0].input_shape[1:], split_by_class=False)
    if not data.labelled:
        raise UsageError(f"the table tests by the labels. Received: {config.data.dataset!r}, which has none.")
    results = metrics.evaluate(models[0], models, data.batches("test"), labelled=True)
    return results[0].accuracy, results[1].accuracy


def as_table(rows: Sequence[Row]) -> Table:
    """Return the rows for a terminal."""
    table = Table(title="what each step is worth")
    for name in (
        *("recipe", "replaced", "nMSE", "swapped\nmean", "swapped\nworst", "assembled\n(validation)"),
        *("test", "drop\npoints", "parameters", "MACs", "blocks\ns", "student\ns"),
    ):
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for row in rows:
        table.add_row(
            *(row.recipe, str(row.replaced), f"{row.nmse:.3f}", f"{row.swapped_mean:.1%}", f"{row.swapped_worst:.1%}"),
            *(f"{row.assembled:.1%}", f"{row.test_accuracy:.2%}", f"{row.drop_points:.2f}"),
            *(f"{row.params:,} ({row.params_share:.0%})", f"{row.macs_share:.0%}"),
            *(f"{row.blocks_s:.0f}", f"{row.student_s:.0f}"),
        )
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag, a value or a recipe is wrong.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("experiments.accuracy", __doc__)
    parser.add_argument("--teacher", default="digits_cnn", help="a model file or a built-in network")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--validation-from", choices=("train", "test"), default="train", help="see pbd distill --help")
    parser.add_argument("--train-limit", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=3, help="for each block")
    parser.add_argument("--fine-tune-epochs", type=int, default=8)
    parser.add_argument("--augment", default="flip_crop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument(
        "--runs", type=Path, default=None, help="where the run directories go (default: runs/accuracy-*)"
    )
    parser.add_argument("--csv", type=Path, default=None, help="also write the table here")
    settings = parser.parse_args(argv)
    check_folder("--csv", settings.csv)
    for recipe in settings.recipes:
        if recipe not in RECIPES:
            raise UsageError(unknown_name("recipe", recipe, RECIPES))
    return settings


def make_table(settings: argparse.Namespace) -> None:
    """Run the recipes one after another and print the table as it grows."""
    names = ("teacher", "dataset", "validation_from", "train_limit", "epochs", "fine_tune_epochs", "augment", "seed")
    runs = settings.runs or Path("runs") / time.strftime("accuracy-%Y%m%d-%H%M%S")
    common = {name: getattr(settings, name) for name in names} | {"max_accuracy_drop": 1.0}
    console, rows = Console(), []
    console.width = max(console.width, WIDTH)  # a narrower table would cut its figures
    for recipe in settings.recipes:
        rows.append(run(recipe, common, runs))
        console.print(as_table(rows))
    if settings.csv:
        write_csv(rows, settings.csv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.accuracy", lambda arguments: make_table(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
