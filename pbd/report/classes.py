"""Changes per class, as both pages and the terminal show them."""

from collections.abc import Iterable

from pbd.records.analysis_report import ClassChanges, ClassRates
from pbd.report import plots
from pbd.report.plots import Plot
from pbd.report.words import percent

MOST_BARS = 25
"""Classes whose accuracy is drawn, those that lose most first."""


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with some decimals; a dash if it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def relative(value: float | None) -> str:
    """Return a relative change that is given in percent: +12.5%."""
    return "-" if value is None else f"{value:+.1f}%"


def left_out(changes: ClassChanges) -> str:
    """Return which classes CEV and SDE leave out."""
    if not changes.left_out:
        return "CEV and SDE are over all classes."
    names = ", ".join(map(str, changes.left_out))
    return f"CEV and SDE leave out classes with a rate of 0 in the teacher, or without images: {names}."


def most_changed(classes: Iterable[ClassRates]) -> list[ClassRates]:
    """Return the classes, those that lose most accuracy first."""

    def gain(row: ClassRates) -> float:
        return (row.student_accuracy or 0.0) - (row.teacher_accuracy or 0.0)

    return sorted(classes, key=gain)


def scatter(changes: ClassChanges) -> tuple[Plot, list[str]]:
    """Return the points (delta FPR, delta FNR) of the classes that have both, and their labels."""
    points = {
        str(row.label): (row.delta_fpr, row.delta_fnr)
        for row in changes.classes
        if row.delta_fpr is not None and row.delta_fnr is not None
    }
    return plots.of_points({"classes": list(points.values())}), list(points)


def accuracies(changes: ClassChanges) -> list[tuple[str, float, str]]:
    """Return bars (name, length, text) of the accuracy of teacher and student for each class."""
    bars = []
    for row in most_changed(changes.classes)[:MOST_BARS]:
        of_teacher = (f"class {row.label}, teacher", row.teacher_accuracy)
        for name, value in (of_teacher, ("student", row.student_accuracy)):
            if value is not None:
                bars.append((name, value, percent(value, 1)))
    return bars
