"""The page of an analysis: heat maps of CKA, error rates per class, confusions, and the exemplars of a population."""

from pathlib import PurePath

from pbd.records.analysis_report import AnalysisReport, StudentAnalysis
from pbd.report import analysis, heat_map, page
from pbd.report.heat_map import HeatMap


def render(report: AnalysisReport) -> str:
    """Return the page; it depends on the report only."""
    return page.render(
        "analysis.html.j2",
        report=report,
        name=PurePath(report.teacher).stem,
        analysis=analysis,
        heat_map=similarity,
        source="pbd analyse",
    )


def similarity(student: StudentAnalysis) -> HeatMap:
    """Return the CKA between all layers of teacher and student."""
    pairs = student.similarity
    return heat_map.of(pairs.teacher_layers, pairs.student_layers, pairs.values)
