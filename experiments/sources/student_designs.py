"""Small networks distilled from the teacher, beside those of the analysis of students of a ResNet18.

python -m experiments.sources.student_designs [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence

from experiments.paper.paper_comparison import Row
from experiments.sources import common, trials
from experiments.sources.common import Settings, percent
from pbd import command_line

NAME = "experiments.sources.student_designs"
DESIGNS = {
    "4 conv + 2 dense": "conv4_dense2",
    "1: one dense removed": "conv4_dense1",
    "2: 1x1 filters": "conv4_dense2_1x1",
    "3: 6 conv + 1 dense": "conv6_dense1",
    "4: fewer channels": "conv4_dense1_narrow",
    "5: 5 conv + 1 dense": "conv5_dense1",
    "6: 2 and 3": "conv6_dense1_1x1",
}
"""The built-in network of each line of the source."""
EPOCHS = (3, 30)
COLUMNS = {
    "student": ("student", ""),
    "name": ("in pbd", ""),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "kilobytes": ("file, kB", ".0f"),
    "params_k": ("parameters,\nthousands", ".1f"),
    "latency_ms": ("1 image,\nms", ".3f"),
    "times_as_fast": ("x teacher", ".2f"),
    "their_accuracy": ("theirs:\naccuracy, %", ".2f"),
    "their_kilobytes": ("kB", ".0f"),
    "their_params_k": ("parameters,\nthousands", ".0f"),
    "their_latency_ms": ("ms", ".3f"),
    "their_times_as_fast": ("x teacher", ".2f"),
}
TEACHER = "ResNet18 (teacher)"


def make(settings: Settings) -> None:
    """Run the recipes, print and write the table."""
    import pbd

    epochs = settings.epochs_of(*EPOCHS)
    done = {
        student: common.compress(settings, f"kd-{name}", [pbd.DistillInto(name, epochs=epochs)])
        for student, name in DESIGNS.items()
    }
    teacher, *_ = done.values()
    reports = {TEACHER: teacher.report.steps[0]} | {name: one.report.steps[-1] for name, one in done.items()}
    models = {TEACHER: teacher.network("teacher")} | {name: one.model for name, one in done.items()}
    times = trials.measure(models, settings.inference_target)
    theirs = {row["student"]: row for row in settings.source("analysis", "student_design")}
    rows: list[Row] = [
        {
            "student": "teacher" if name == TEACHER else name,
            "name": DESIGNS.get(name),
            "accuracy": percent(report.network.test_accuracy),
            "kilobytes": times[name].size_bytes / 1000,
            "params_k": report.network.params / 1000,
            "latency_ms": times[name].median_ms,
            "times_as_fast": times[name].times_as_fast,
        }
        | _theirs(theirs, name)
        for name, report in reports.items()
    ]
    settings.show(
        "student_designs",
        "Designs of students: distillation into a small network",
        COLUMNS,
        rows,
        settings.ours(f"{epochs} epochs, the loss of DistillInto; {settings.inference_target}, one thread"),
        "Theirs: students of a ResNet18 (90.3%) on CIFAR-10; the machine of their latencies is not known.",
    )


def _theirs(theirs: dict[str, Row], name: str) -> Row:
    if name not in theirs:
        return {}
    row = theirs[name]
    return {
        "their_accuracy": row["top1"],
        "their_kilobytes": 1000 * row["size_mb"],
        "their_params_k": row["params_k"],
        "their_latency_ms": row["latency_ms"],
        "their_times_as_fast": theirs[TEACHER]["latency_ms"] / row["latency_ms"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
