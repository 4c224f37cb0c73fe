"""An analysis as text for a terminal: networks, layers, classes, confusions and the exemplars of a population."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pbd.records.analysis_report import AnalysisReport, ClassRates, PopulationAnalysis, StudentAnalysis
from pbd.report.classes import left_out, most_changed, number, relative
from pbd.report.words import percent

MOST_CLASSES = 20
"""Classes that a terminal shows, those that lose most accuracy first."""
MOST_EXEMPLARS = 20


def summary(report: AnalysisReport) -> Group:
    """Return the analysis for a terminal."""
    parts: list[RenderableType] = [Text(headline(report)), Text(""), _students(report)]
    for student in report.students:
        parts += _student(student, f"{student.name}: " if len(report.students) > 1 else "")
    if report.population:
        exemplars = report.population.exemplars
        parts += [Text(""), Text(population(report.population, report.images)), _exemplars(report.population)]
        if len(exemplars) > MOST_EXEMPLARS:
            parts.append(Text(f"The first {MOST_EXEMPLARS} of {len(exemplars)}; --json has all."))
    return Group(*parts, *map(Text, report.notes), *(Text(f"Not computed: {line}.") for line in report.absent))


def _student(student: StudentAnalysis, title: str) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(""), Text(f"{title}layers", style="bold"), _layers(student)]
    if student.unmatched:
        parts.append(Text(f"No counterpart: {', '.join(student.unmatched)}."))
    if student.changes is None:
        return parts
    classes = student.changes.classes
    parts += [Text(""), Text(f"{title}classes", style="bold"), _classes(classes)]
    if len(classes) > MOST_CLASSES:
        parts.append(Text(f"The {MOST_CLASSES} of {len(classes)} classes that lose most accuracy."))
    parts.append(Text(left_out(student.changes)))
    if student.changes.confusions:
        parts += [Text(""), Text(f"{title}confusions", style="bold"), _confusions(student)]
    return parts


def headline(report: AnalysisReport) -> str:
    """Return the heading: teacher, students, split and number of images."""
    where = "averaged over their positions" if report.positions == "average" else "by Fourier coefficient"
    return (
        f"{report.teacher} on {report.images} {report.split} images of {report.data}; "
        f"activations {where}, on {report.similarity_images} images."
    )


def population(analysis: PopulationAnalysis, images: int) -> str:
    """Return how many images get another most frequent class."""
    return (
        f"Over {analysis.students} students, {len(analysis.exemplars)} of {images} images get another most frequent "
        f"class than over {_teachers(analysis.teachers)} (compression-identified exemplars)."
    )


def _teachers(count: int) -> str:
    return "the teacher" if count == 1 else f"{count} teachers"


def _table(*headings: str, names: int = 1) -> Table:
    """Return a table whose first columns hold names, and all others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in headings[:names]:
        table.add_column(heading, overflow="fold")
    for heading in headings[names:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _students(report: AnalysisReport) -> Table:
    labelled = any(student.changes for student in report.students)
    quality = ("accuracy", "neg. flips", "pos. flips", "ECE", "CEV", "SDE") if labelled else ()
    table = _table("network", "churn", *quality)
    if labelled and report.students[0].changes:
        first = report.students[0].changes
        table.add_row("teacher", "", percent(first.teacher_accuracy), "", "", number(first.teacher_ece), "", "")
    for student in report.students:
        table.add_row(Text(student.name), percent(student.churn), *_quality(student))
    return table


def _quality(student: StudentAnalysis) -> Sequence[str]:
    changes = student.changes
    if changes is None:
        return ()
    flips = percent(changes.negative_flips), percent(changes.positive_flips)
    spread = number(changes.cev, 1), number(changes.sde, 2)
    return percent(changes.student_accuracy), *flips, number(changes.student_ece), *spread


def _layers(student: StudentAnalysis) -> Table:
    table = _table("layer", "in the student", "SVCCA", "distance", "CKA", "channels", names=2)
    for row in student.layers:
        old, new = row.neurons
        values = number(row.svcca), number(row.svcca_distance), number(row.cka)
        table.add_row(Text(row.layer), Text(row.student_layer), *values, str(old) if old == new else f"{old}->{new}")
    return table


def _classes(classes: Sequence[ClassRates]) -> Table:
    table = _table("class", "images", "accuracy", "after", "delta FPR", "delta FNR")
    for row in most_changed(classes)[:MOST_CLASSES]:
        accuracies = (
            "-" if value is None else percent(value, 1) for value in (row.teacher_accuracy, row.student_accuracy)
        )
        table.add_row(str(row.label), str(row.images), *accuracies, relative(row.delta_fpr), relative(row.delta_fnr))
    return table


def _confusions(student: StudentAnalysis) -> Table:
    table = _table("class", "taken for", "before", "after", "change")
    for row in student.changes.confusions if student.changes else ():
        table.add_row(str(row.label), str(row.predicted), str(row.teacher), str(row.student), f"{row.change:+d}")
    return table


def _exemplars(analysis: PopulationAnalysis) -> Table:
    files = any(row.file is not None for row in analysis.exemplars)
    table = _table("file" if files else "image", "label", "teachers", "students")
    for row in analysis.exemplars[:MOST_EXEMPLARS]:
        image = Text(str(row.image) if row.file is None else row.file)
        table.add_row(image, number(row.label, 0), str(row.teachers), str(row.students))
    return table
