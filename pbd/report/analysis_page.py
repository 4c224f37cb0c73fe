"""The page of an analysis: heat maps of CKA, error rates per class, confusions, and the exemplars of a population."""

from pathlib import PurePath

from pbd.records.analysis_report import AnalysisReport, ClassChanges, StudentAnalysis
from pbd.report import analysis, heat_map, page, plots
from pbd.report.heat_map import HeatMap
from pbd.report.plots import Plot
from pbd.report.words import percent

MOST_BARS = 25
"""Classes whose accuracy is drawn, those that lose most first."""


def render(report: AnalysisReport) -> str:
    """Return the page; it depends on the report only."""
    return page.render(
        "analysis.html.j2",
        report=report,
        name=PurePath(report.teacher).stem,
        analysis=analysis,
        heat_map=similarity,
        scatter=scatter,
        bars_of=accuracies,
        source="pbd analyse",
    )


def similarity(student: StudentAnalysis) -> HeatMap:
    """Return the CKA between all layers of teacher and student."""
    pairs = student.similarity
    return heat_map.of(pairs.teacher_layers, pairs.student_layers, pairs.values)


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
    for row in analysis.most_changed(changes.classes)[:MOST_BARS]:
        for name, value in (
            (f"class {row.label}, teacher", row.teacher_accuracy),
            ("student", row.student_accuracy),
        ):
            if value is not None:
                bars.append((name, value, percent(value, 1)))
    return bars
