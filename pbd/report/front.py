"""The front of a sweep: for each budget, how fast and how good its student is, compared with the teacher."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from pbd.config import budgets
from pbd.records import RunReport
from pbd.report import deployments, plots
from pbd.report.plain_text import plain_text
from pbd.report.words import percent, times

_ABSENT = "-"


@dataclass(frozen=True)
class Point:
    """A network in one precision."""

    series: str
    """`student` or `teacher`, and the precision."""
    budget: str
    """Empty for the teacher."""
    times_as_fast: float
    """How many times as fast as the teacher in float32, measured in turn."""
    quality: float
    """Test accuracy in the runtime, in percent; if a run has no labels, the agreement with the teacher."""


def batch_of(reports: Mapping[str, RunReport]) -> int | None:
    """Return the batch size of the budgets if it was measured, else the smallest; `None` if nothing was measured."""
    (first, *_) = reports.values()
    sizes = deployments.batches(first.deployments)
    target_batch = first.config.get("target_batch")
    return target_batch if target_batch in sizes else min(sizes, default=None)


def is_common(reports: Mapping[str, RunReport]) -> bool:
    """Return whether all runs have one teacher, one data set and one target, so that one picture can show them."""
    conditions = {
        (report.config.get("teacher"), report.config.get("dataset"), *(row.target for row in report.deployments[:1]))
        for report in reports.values()
    }
    return len(conditions) == 1


def judged(reports: Mapping[str, RunReport]) -> str:
    """Return what these runs can all be compared by: `accuracy`, or `agreement` if one of them has no labels."""
    return "accuracy" if all(report.reference == "labels" for report in reports.values()) else "agreement"


def points(reports: Mapping[str, RunReport]) -> list[Point]:
    """Return the students of all budgets, and the teacher: in float32 and in 8-bit integers, as far as measured."""
    batch = batch_of(reports)
    rows = [] if batch is None else [*_rows(reports, batch)]
    of_teacher: dict[str, list[Point]] = {}
    for point in rows:
        if not point.budget:
            of_teacher.setdefault(point.series, []).append(point)
    medians = [
        Point(series, "", statistics.median(each.times_as_fast for each in group), group[0].quality)
        for series, group in of_teacher.items()
    ]
    return [*medians, *(point for point in rows if point.budget)]


def _rows(reports: Mapping[str, RunReport], batch: int) -> Iterator[Point]:
    by_agreement = judged(reports) == "agreement"
    for budget, report in reports.items():
        for row in report.deployments:
            latency = deployments.at_batch(row, batch)
            quality = row.test_agreement if by_agreement or row.test_accuracy is None else row.test_accuracy
            if latency is not None:
                series = f"{row.model}, {'int8' if deployments.is_int8(row) else 'float32'}"
                yield Point(series, budget * (row.model == "student"), latency.times_as_fast, 100 * quality)


def plot(reports: Mapping[str, RunReport]) -> plots.Plot:
    """Return quality against speed: a line for the student in each precision, a dot for the teacher."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in points(reports):
        series.setdefault(point.series, []).append((point.times_as_fast, point.quality))
    return plots.of_points({name: sorted(group) for name, group in series.items()})


def render(reports: Mapping[str, RunReport], width: int = 120) -> str:
    """Return the table as plain text."""
    return plain_text(table(reports), width)


def table(reports: Mapping[str, RunReport]) -> Table:
    """Return a row for each budget: what was predicted and measured, size, and quality and speed in each precision."""
    batch = batch_of(reports)
    content = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    columns = ("budget", "predicted", "measured", "MACs", "parameters")
    precisions = [
        f"{name}\n{what}" for name in ("float32", "int8") for what in (judged(reports), "x teacher", "x int8")
    ]
    for name in (*columns, *precisions):
        content.add_column(name, justify="left" if name == "budget" else "right", no_wrap=True)
    for budget, report in reports.items():
        content.add_row(budget, *_choice(report), *_counts(report), *_speeds(report, batch))
    return content


def _choice(report: RunReport) -> Sequence[str]:
    """Return the predicted and the measured share of the resource that the budget limits."""
    if report.choice is None:
        return _ABSENT, _ABSENT
    resource = report.config["budget"][0].partition(":")[0]
    predicted = report.choice.predicted[resource]
    measured = report.choice.measured.get(resource) if resource in budgets.MEASURED else predicted
    return percent(predicted, 1), _ABSENT if measured is None else percent(measured, 1)


def _counts(report: RunReport) -> Sequence[str]:
    """Return multiply-accumulates and parameters as shares of the teacher's."""
    teacher, student = report.teacher, report.student
    return percent(student.macs / teacher.macs, 1), percent(student.params / teacher.params, 1)


def _speeds(report: RunReport, batch: int | None) -> Iterator[str]:
    for int8 in (False, True):
        row = deployments.form(report.deployments, "student", int8)
        latency = deployments.at_batch(row, batch) if row is not None and batch is not None else None
        if row is None or latency is None:
            yield from (_ABSENT, _ABSENT, _ABSENT)
        else:
            yield percent(row.test_agreement if row.test_accuracy is None else row.test_accuracy, 2)
            yield times(latency.times_as_fast)
            yield times(latency.times_as_fast_as_int8)
