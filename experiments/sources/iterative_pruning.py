"""Pruning of weights: 15% of what is left per round, and single passes beside their controls.

python -m experiments.sources.iterative_pruning [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.paper.paper_comparison import Row
from experiments.sources import common
from experiments.sources.common import Settings, percent
from pbd import command_line
from pbd.records.recipe_report import StepReport

if TYPE_CHECKING:
    from pbd.compression.step import Step

NAME = "experiments.sources.iterative_pruning"
PER_ROUND = 0.15
ROUNDS = (9, 24)
"""77% and 98% of the weights."""
SINGLE, SINGLE_QUICK = (0.30, 0.45, 0.60, 0.75, 0.90), (0.60, 0.90)
ITERATIVE, ITERATIVE_QUICK = (0.60, 0.70, 0.80, 0.90), (0.60, 0.90)
METHODS = {"mag": "magnitude", "reinit": "redraw", "rand": "random"}
"""The name in the dissertation, and the control in pbd."""
EPOCHS, CONTROL_EPOCHS = (1, 10), (3, 60)
IMP_COLUMNS = {
    "pruned_percent": ("pruned, %", "d"),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "change": ("change,\npoints", "+.2f"),
    "params_k": ("parameters not 0,\nthousands", ".1f"),
    "kilobytes": ("kB with\nsparse kernels", ".0f"),
    "their_accuracy": ("theirs:\naccuracy, %", ".2f"),
    "their_change": ("change,\npoints", "+.2f"),
    "their_params_k": ("parameters,\nthousands", ".0f"),
    "their_kilobytes": ("kB", ".0f"),
}


def make(settings: Settings) -> None:
    """Run the recipes, print and write both tables."""
    _by_rounds(settings)
    _by_method(settings)


def _by_rounds(settings: Settings) -> None:
    """One recipe: a step for each round, so that every round has a network."""
    shares = [1 - (1 - PER_ROUND) ** number for number in range(1, settings.pick(*ROUNDS) + 1)]
    steps = _iterative(settings, shares)
    report = common.compress(settings, "iterative-15-percent", steps).report
    theirs = {row["pruned_percent"]: row for row in settings.source("analysis", "iterative_magnitude_pruning")}
    rows = [
        _row(round(100 * share), step, report.steps[0]) | _theirs(theirs, round(100 * share))
        for share, step in zip([0.0, *shares], report.steps, strict=True)
    ]
    settings.show(
        "iterative_magnitude_pruning",
        "Iterative magnitude pruning: 15% of what is left per round",
        IMP_COLUMNS,
        rows,
        settings.ours(f"{settings.epochs_of(*EPOCHS)} epoch(s) per round ({settings.loss}); the classifier stays"),
        "Theirs: ResNet18, CIFAR-10, retrained each round; for how many epochs is not known.",
    )


def _iterative(settings: Settings, shares: Sequence[float]) -> "list[Step]":
    import pbd

    epochs = settings.epochs_of(*EPOCHS)
    return [pbd.PruneWeights(ratio=share, epochs=epochs, loss=settings.loss) for share in shares]


def _row(pruned: int, step: StepReport, teacher: StepReport) -> Row:
    accuracy, before = step.network.test_accuracy, teacher.network.test_accuracy
    size = step.details.get("bytes", {}).get("sparse")
    return {
        "pruned_percent": pruned,
        "accuracy": percent(accuracy),
        "change": None if accuracy is None or before is None else 100 * (accuracy - before),
        "params_k": step.nonzero_params / 1000,
        "kilobytes": None if size is None else size / 1000,
    }


def _theirs(theirs: dict[int, Row], pruned: int) -> Row:
    if pruned not in theirs:
        return {}
    row = theirs[pruned]
    return {
        "their_accuracy": row["top1"],
        "their_change": row["top1"] - theirs[0]["top1"],
        "their_params_k": 1000 * row["params_m"],
        "their_kilobytes": 1000 * row["size_mb"],
    }


def _by_method(settings: Settings) -> None:
    """A recipe for each single pass, and one for the iterative line."""
    ours = Path(settings.teacher).stem
    rows: list[Row] = []
    for method, control in METHODS.items():
        row: Row = {"network": f"ours: {ours}", "method": method}
        for share in settings.pick(SINGLE_QUICK, SINGLE):
            teacher, step = _single_pass(settings, control, share)
            row |= {"0": percent(teacher.network.test_accuracy), _key(share): percent(step.network.test_accuracy)}
        rows.append(row)
    shares = settings.pick(ITERATIVE_QUICK, ITERATIVE)
    iterative = common.compress(settings, "iterative-60-to-90", _iterative(settings, shares)).report.steps
    accuracies = {
        _key(share): percent(step.network.test_accuracy) for share, step in zip((0.0, *shares), iterative, strict=True)
    }
    rows.append({"network": f"ours: {ours}", "method": "iterative", **accuracies})
    rows += settings.source("dissertation", "table2_1_single_pass_pruning_cifar10")
    for row in settings.source("dissertation", "table2_3_iterative_pruning"):
        rows.append({**row, "network": f"{row['network']}, {row['data']}", "method": "iterative"})
    keys = sorted({_key(share) for share in (0.0, *SINGLE, *ITERATIVE)}, key=int)
    settings.show(
        "pruning_methods",
        "Test accuracy, %, by the share of weights that are zero, %",
        {"network": ("network", ""), "method": ("method", "")} | {key: (key, ".2f") for key in keys},
        rows,
        settings.ours(
            f"retrained {settings.epochs_of(*EPOCHS)} epoch(s) ({settings.loss}), controls trained "
            f"{settings.epochs_of(*CONTROL_EPOCHS)} from random weights"
        ),
        "mag: smallest weights; reinit: the same zeros, weights drawn anew; rand: zeros at random places. Theirs: "
        "controls trained as long as the baseline.",
    )


def _single_pass(settings: Settings, control: str, share: float) -> "tuple[StepReport, StepReport]":
    import pbd

    epochs = settings.epochs_of(*(EPOCHS if control == "magnitude" else CONTROL_EPOCHS))
    step = pbd.PruneWeights(ratio=share, control=control, epochs=epochs, loss=settings.loss)
    teacher, pruned = common.compress(settings, f"single-{control}-{_key(share)}", [step]).report.steps
    return teacher, pruned


def _key(share: float) -> str:
    return f"{100 * share:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
