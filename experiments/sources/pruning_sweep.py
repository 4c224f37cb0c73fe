"""Pruning by L1, L2 and level at 10 to 90%, retrained: accuracy, and latency in 25 trials.

python -m experiments.sources.pruning_sweep [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.paper.paper_comparison import Row
from experiments.sources import common, trials
from experiments.sources.common import Settings, percent
from pbd import command_line
from pbd.records.recipe_report import StepReport

if TYPE_CHECKING:
    from pbd.compression.step import Step

NAME = "experiments.sources.pruning_sweep"
RATIOS, RATIOS_QUICK = tuple(range(10, 100, 10)), (30, 60, 90)
METHODS = ("L1", "L2", "level")
EPOCHS = (1, 20)
COLUMNS = {
    "method": ("method", ""),
    "ratio": ("pruned, %", "d"),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "change": ("change,\npoints", "+.2f"),
    "params_k": ("parameters not 0,\nthousands", ".1f"),
    "macs_m": ("MACs,\nmillions", ".1f"),
    "latency_ms": ("1 image, ms:\nmedian", ".3f"),
    "q1_ms": ("q1", ".3f"),
    "q3_ms": ("q3", ".3f"),
    "low_ms": ("least", ".3f"),
    "high_ms": ("most", ".3f"),
    "times_as_fast": ("x teacher", ".2f"),
}


def make(settings: Settings) -> None:
    """Run the recipes, measure all networks side by side, print, write and draw the table."""
    points = [(method, ratio) for method in METHODS for ratio in settings.pick(RATIOS_QUICK, RATIOS)]
    done = {
        (method, ratio): common.compress(settings, f"sweep-{method}-{ratio}", _steps(settings, method, ratio))
        for method, ratio in points
    }
    first = done[points[0]]
    models = {"teacher": first.network("teacher")} | {f"{m} {r}": one.model for (m, r), one in done.items()}
    times = trials.measure(models, settings.inference_target)
    teacher = first.report.steps[0]
    rows = [_row("teacher", 0, teacher, teacher, times["teacher"])]
    rows += [_row(m, r, one.report.steps[-1], teacher, times[f"{m} {r}"]) for (m, r), one in done.items()]
    settings.show(
        "pruning_sweep",
        "Pruning sweep: L1 and L2 remove filters, level sets weights to zero",
        COLUMNS,
        rows,
        settings.ours(
            f"retrained {settings.epochs_of(*EPOCHS)} epoch(s) ({settings.loss}), no refit; "
            f"{settings.inference_target}, {trials.ROUNDS} trials in turn, one thread"
        ),
        "Theirs (NNI report): a CNN on MNIST retrained 3 epochs and ResNet-101 on CIFAR-10 retrained 20; their figures "
        "were not at hand. Ours really removes filters, with all channels that depend on them.",
    )
    _draw(settings, rows)


def _steps(settings: Settings, method: str, ratio: int) -> "list[Step]":
    import pbd

    tune = pbd.FineTune(epochs=settings.epochs_of(*EPOCHS), loss=settings.loss)
    if method == "level":
        return [pbd.PruneWeights(ratio=ratio / 100), tune]
    return [pbd.PruneFilters(ratio=ratio / 100, importance=method.lower(), refit=False), tune]


def _row(method: str, ratio: int, step: StepReport, teacher: StepReport, times: trials.Trials) -> Row:
    accuracy, before = step.network.test_accuracy, teacher.network.test_accuracy
    return {
        "method": method,
        "ratio": ratio,
        "accuracy": percent(accuracy),
        "change": None if accuracy is None or before is None else 100 * (accuracy - before),
        "params_k": step.nonzero_params / 1000,
        "macs_m": step.network.macs / 1e6,
        "latency_ms": times.median_ms,
        "q1_ms": times.q1_ms,
        "q3_ms": times.q3_ms,
        "low_ms": times.low_ms,
        "high_ms": times.high_ms,
        "times_as_fast": times.times_as_fast,
    }


def _draw(settings: Settings, rows: Sequence[Row]) -> None:
    """Write accuracy and latency over the share that is pruned, a line for each method."""
    from pbd.report import page  # loads the template engine

    for key, heading in (
        ("accuracy", "test accuracy, percent"),
        ("latency_ms", "median of 25 trials, ms for one image"),
    ):
        series = {
            method: [(row["ratio"], row[key]) for row in rows if row["method"] in (method, "teacher") and row[key]]
            for method in METHODS
        }
        file = settings.tables / f"pruning_sweep_{key}.svg"
        file.write_text(page.picture(series, ("pruned, percent", heading)), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
