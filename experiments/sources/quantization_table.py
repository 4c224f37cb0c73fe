"""The teacher in float32, in 8-bit integers after training, and trained for 8-bit integers.

python -m experiments.sources.quantization_table [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence

from experiments.paper.paper_comparison import Row
from experiments.sources import common
from experiments.sources.common import Settings, percent
from pbd import command_line
from pbd.records import Deployment
from pbd.records.recipe_report import RecipeReport
from pbd.report import deployments

NAME = "experiments.sources.quantization_table"
EPOCHS = (1, 10)
COLUMNS = {
    "model": ("model", ""),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "change": ("change,\npoints", "+.2f"),
    "kilobytes": ("file, kB", ".0f"),
    "latency_ms": ("1 image,\nms", ".3f"),
    "times_as_fast": ("x float32", ".2f"),
    "their_accuracy": ("theirs:\naccuracy, %", ".2f"),
    "their_change": ("change,\npoints", "+.2f"),
    "their_kilobytes": ("kB", ".0f"),
    "their_latency_ms": ("ms", ".2f"),
    "their_times_as_fast": ("x float32", ".2f"),
}


def recipe(settings: Settings) -> RecipeReport:
    """Quantise the teacher after training, and train it for 8-bit integers; the first step leaves it as it is."""
    import pbd

    steps = [pbd.Quantize(max_drop=1.0), pbd.Quantize(method="qat", epochs=settings.epochs_of(*EPOCHS))]
    return common.compress(settings, "quantization", steps, settings.inference_target).report


def make(settings: Settings) -> None:
    """Run the recipe, print and write the table."""
    report = recipe(settings)
    teacher, static, trained = report.steps
    deployed = [
        deployments.form(teacher.deployments, teacher.name, int8=False),
        deployments.form(static.deployments, static.name, int8=True),
        deployments.form(trained.deployments, trained.name, int8=True),
    ]
    theirs = settings.source("analysis", "quantisation") or [{}, {}, {}]
    names = ("float32", "static int8", "QAT")
    rows = [
        {"model": name} | _ours(row, deployed[0]) | _theirs(their, theirs[0])
        for name, row, their in zip(names, deployed, theirs, strict=True)
    ]
    settings.show(
        "quantization",
        "8-bit integers",
        COLUMNS,
        rows,
        settings.ours(
            f"QAT {settings.epochs_of(*EPOCHS)} epoch(s) on the teacher's logits; "
            f"{settings.inference_target}, one thread"
        ),
        f"QAT kept: {trained.details.get('method')} (ptq: the file after training had the higher validation accuracy).",
        "Theirs: ResNet18, CIFAR-10; their float32 file has 84.6 MB, twice the 44.7 MB of their other tables.",
    )


def _ours(row: Deployment | None, float32: Deployment | None) -> Row:
    if row is None or float32 is None:
        return {}
    latency = min(row.latency, key=lambda each: each.batch)
    accuracy, before = row.test_accuracy, float32.test_accuracy
    return {
        "accuracy": percent(accuracy),
        "change": None if accuracy is None or before is None else 100 * (accuracy - before),
        "kilobytes": row.size_bytes / 1000,
        "latency_ms": 1000 * latency.seconds,
        "times_as_fast": latency.times_as_fast,
    }


def _theirs(row: Row, float32: Row) -> Row:
    if not row:
        return {}
    return {
        "their_accuracy": row["top1"],
        "their_change": row["top1"] - float32["top1"],
        "their_kilobytes": 1000 * row["size_mb"],
        "their_latency_ms": row["latency_ms"],
        "their_times_as_fast": float32["latency_ms"] / row["latency_ms"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
