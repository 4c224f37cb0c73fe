"""The table of the efficiency study: our figures, those of the sources, and what differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from experiments.efficiency_plans import BASELINE, DRAWN, HALF, MATRYOSHKA

WIDTH = 200
NO_SOURCE = "not in these tables"
SOURCES = {
    BASELINE: "5.3, 5.4: 76.62 in 10,799 s",
    "KL": "5.3: 77.33 (+0.71)",
    "MSE": "5.3: 77.21 (+0.59)",
    BASELINE + HALF: "5.4: 75.64 (-0.98) in 5,455 s",
    f"KL, first 25%{HALF}": "5.4: 75.95 (-0.67) in 5,813 s",
    f"KL, first 50%{HALF}": "5.4: 76.46 (-0.16) in 6,175 s",
    f"KL{HALF}": "5.4: 77.48 (+0.86) in 6,887 s; 5.3: 76.51",
    DRAWN: "5.7: 70.55 to 72.93 (+2.38)",
    MATRYOSHKA: "5.7: 70.55 to 73.04 (+2.49)",
}
"""Test accuracy in percent (points above that of labels alone) and seconds, by table of Blakeney's dissertation, Texas
State University, chapter 5."""
REMARKS = (
    "Seconds are those of the clock; CPU are those of the processor, for all threads. Compare the second if other jobs "
    "share the cores, the first on a GPU.",
    "Half: of the epochs. Theirs: ImageNet; ResNet-50, 90 epochs and 45 (5.3, 5.4), and ResNet-18, 90 epochs of labels "
    "alone, 720 in all for the others (5.7). Labels alone: the best of the columns B1 to B4. Weight and temperature of "
    "their loss, and which loss 5.4 has, are not known here: its 77.48 is in neither column of 5.3 (KL 76.51, MSE "
    "76.73).",
    "Their times to the accuracy of labels alone: ResNet-50 1.96 times as fast, with a teacher drawn per step 1.85 "
    "times. By 5.4, distillation in 45 epochs is above the 90 epochs of labels alone in 6,887 s of 10,799 s, 1.57 "
    "times as fast; these seconds leave out the training of the teacher.",
    "What differs: each of their points seems to be a training of its own, to the end of its schedule; ours reaches "
    "the target at the first epoch at which the validation accuracy is as high, in one training per line. Ours: Adam "
    "with a cosine. A generation of our Matryoshka learns from a teacher drawn per step from all before it; how theirs "
    "draws is not known here.",
)


@dataclass(frozen=True)
class Row:
    """One method beside the training on labels alone; accuracies are fractions."""

    method: str
    epochs: int
    distilled_share: float
    """Of the steps."""
    test_accuracy: float
    change_points: float
    seconds: float
    cpu_seconds: float
    target: float
    """The validation accuracy to reach."""
    epochs_to_target: int | None
    """None here and below: it was not reached."""
    seconds_to_target: float | None
    cpu_seconds_to_target: float | None
    times_as_fast: float | None
    """Seconds to the target of the labels alone, over those of this method."""
    cpu_times_as_fast: float | None
    teachers_seconds: float
    """Training of the teachers, and of their teachers."""
    teachers_cpu_seconds: float
    times_as_fast_with_teachers: float | None
    cpu_times_as_fast_with_teachers: float | None
    source: str


def show(console: Console, rows: Sequence[Row], remarks: Iterable[str]) -> None:
    """Print the table, and below it what it was measured on and what differs from the sources.

    Args:
        console: is made wide enough.
        rows: the first is that of the labels alone.
        remarks: on ours.
    """
    console.width = max(console.width, WIDTH)  # a narrower table would cut its figures
    table = Table("method", "epochs", "distilled", "test\naccuracy", "points", "seconds\n(CPU)")
    for heading in (
        *("to target:\nepochs", "seconds\n(CPU)", "times as\nfast (CPU)"),
        *("teachers:\nseconds (CPU)", "times as fast\nwith them", "theirs, %"),
    ):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            *(row.method, str(row.epochs), f"{row.distilled_share:.0%}", f"{row.test_accuracy:.2%}"),
            *(f"{row.change_points:+.2f}", _both(row.seconds, row.cpu_seconds, ".1f")),
            "not reached" if row.epochs_to_target is None else str(row.epochs_to_target),
            _both(row.seconds_to_target, row.cpu_seconds_to_target, ".1f"),
            _both(row.times_as_fast, row.cpu_times_as_fast, ".2f"),
            _both(row.teachers_seconds, row.teachers_cpu_seconds, ".1f"),
            _both(row.times_as_fast_with_teachers, row.cpu_times_as_fast_with_teachers, ".2f"),
            row.source,
        )
    console.print(table)
    for remark in (*remarks, *REMARKS):
        console.print(remark, highlight=False)


def _both(seconds: float | None, cpu: float | None, form: str) -> str:
    return "-" if seconds is None or cpu is None else f"{seconds:{form}} ({cpu:{form}})"
