"""One larger student against the mean of three small ones that have its parameters together.

python -m experiments.sources.ensemble_table [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence

from experiments.paper.paper_comparison import Row
from experiments.sources import common, trials
from experiments.sources.common import Settings, percent
from pbd import command_line

NAME = "experiments.sources.ensemble_table"
LARGE = "conv4_dense2"
SMALL = ("conv4_dense1_narrow", "conv5_dense1", "conv6_dense1_1x1")
"""Students 4, 5 and 6 of the source."""
EPOCHS = (3, 30)
COLUMNS = {
    "model": ("model", ""),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "kilobytes": ("file, kB", ".0f"),
    "params_k": ("parameters,\nthousands", ".1f"),
    "latency_ms": ("1 image,\nms", ".3f"),
    "times_as_fast": ("x teacher", ".2f"),
    "their_accuracy": ("theirs:\naccuracy, %", ".2f"),
    "their_kilobytes": ("kB", ".0f"),
    "their_params_k": ("parameters,\nthousands", ".0f"),
}


def make(settings: Settings) -> None:
    """Run the recipes, print and write the table."""
    import pbd

    epochs = settings.epochs_of(*EPOCHS)
    members = [[pbd.DistillInto(name, epochs=epochs)] for name in SMALL]
    large = common.compress(settings, f"kd-{LARGE}", [pbd.DistillInto(LARGE, epochs=epochs)])
    ensemble = common.compress(settings, "ensemble", [pbd.Ensemble(members)])
    models = {"teacher": large.network("teacher"), "one": large.model, "three": ensemble.model}
    times = trials.measure(models, settings.inference_target)
    single, mean = settings.source("analysis", "ensemble") or ({}, {})
    reports = (large.report.steps[0], large.report.steps[-1], ensemble.report.steps[-1])
    names = ("teacher", f"one: {LARGE}", f"mean of {', '.join(SMALL)}")
    rows: list[Row] = [
        {
            "model": name,
            "accuracy": percent(report.network.test_accuracy),
            "kilobytes": times[key].size_bytes / 1000,
            "params_k": report.network.params / 1000,
            "latency_ms": times[key].median_ms,
            "times_as_fast": times[key].times_as_fast,
            "their_accuracy": theirs.get("top1"),
            "their_kilobytes": 1000 * theirs["size_mb"] if theirs else None,
            "their_params_k": theirs.get("params_k"),
        }
        for name, key, report, theirs in zip(names, models, reports, ({}, single, mean), strict=True)
    ]
    settings.show(
        "ensemble",
        "An ensemble of small students, and one student of the same parameters",
        COLUMNS,
        rows,
        settings.ours(f"{epochs} epochs for each student; {settings.inference_target}"),
        "Theirs: students of a ResNet18 (90.3%) on CIFAR-10. The latency of their ensemble is not known.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
