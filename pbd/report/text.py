"""The summary of a run as text, for a terminal and for `summary.txt`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pbd.records import BlockReport, Deployment, ModelFacts, RunReport, WorkerReport
from pbd.report import deployments
from pbd.report.deployment_table import WIDE, DeploymentTable
from pbd.report.plain_text import plain_text
from pbd.report.words import (
    ABSENT,
    count,
    decisions,
    error,
    names,
    percent,
    points,
    ratio,
)

_STYLES = {"accepted": "green", "rejected": "yellow", "restored": "yellow", "failed": "bold red", "skipped": "dim"}


def render(report: RunReport, width: int = 120) -> str:
    """Return the summary as plain text, for `summary.txt`."""
    return plain_text(summary(report), width)


def summary(report: RunReport) -> Group:
    """Return the summary for a terminal: whether to deploy the student, then each layer, both networks, and facts."""
    deployed: list[RenderableType] = [DeploymentTable(report.deployments), Text("")] if report.deployments else []
    return Group(
        Text(""),
        _advice(report),
        Text(""),
        *deployed,
        _Layers(report.blocks, "accuracy" if report.reference == "labels" else "agreement"),
        _headline(report),
        Text(""),
        _before_and_after(report),
        Text(""),
        _facts(report),
    )


def _advice(report: RunReport) -> Text:
    """Return what to know before deploying the student; a better choice comes first."""
    sentences = deployments.sentences(report)
    warned = bool(deployments.verdict(report.deployments))
    text = Text(sentences[0], style="bold yellow" if warned else "bold")
    return text.append("".join(f" {sentence}" for sentence in sentences[1:]), style="not bold default")


@dataclass(frozen=True)
class _Layers:
    """The table of layers; on a narrow terminal, the reasons follow the table instead of being a column of it."""

    rows: tuple[BlockReport, ...]
    judged: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        yield _layer_table(self.rows, self.judged, wide)
        yield Text("")
        if wide:
            return
        layers_by_reason: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.status != "accepted":
                layers_by_reason.setdefault((row.status, row.reason), []).append(row.layer)
        for (status, reason), layers in layers_by_reason.items():
            yield Text.assemble((status, _STYLES.get(status, "")), f" {', '.join(layers)}: {reason}")
        if layers_by_reason:
            yield Text("")


def _layer_table(rows: tuple[BlockReport, ...], judged: str, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("decision", no_wrap=True)
    several = any(len(row.candidates) > 1 for row in rows)
    if several:
        table.add_column("block", overflow="fold")
    if wide:
        table.add_column("why", overflow="fold", min_width=16)
    for name in ("nMSE", f"{judged}\nswapped" if wide else f"{judged[:3]}.", "parameters", "MACs", "worker", "seconds"):
        short = {"worker": "wkr", "seconds": "s"}
        table.add_column(name if wide else short.get(name, name), justify="right", no_wrap=True)
    for row in rows:
        reason = [Text(row.reason)] if wide else []
        table.add_row(
            Text(row.layer),
            Text(row.status, style=_STYLES.get(row.status, "")),
            *[row.block or "-"] * several,
            *reason,
            *_measurements(row),
        )
    return table


def _measurements(row: BlockReport) -> tuple[str, ...]:
    def change(before: int, after: int) -> str:
        old, new = (count(value).replace(" ", "") for value in (before, after))
        return f"{old}->{new}" if row.status in ("accepted", "rejected", "restored") else old

    return (
        error(row.nmse),
        percent(row.val_agreement if row.val_accuracy is None else row.val_accuracy, 1)
        if row.nmse is not None
        else "-",
        change(row.params_before, row.params_after),
        change(row.macs_before, row.macs_after),
        "-" if row.worker is None else str(row.worker),
        "-" if row.seconds is None else f"{row.seconds:.1f}",
    )


def _headline(report: RunReport) -> Text:
    (_, accepted), *others = decisions(report.blocks)
    line = Text(f"{accepted} of {len(report.blocks)} layers replaced", style="bold")
    for status, number in others:
        line.append(f", {number} {status}", style=_STYLES[status])
    return line


def _before_and_after(report: RunReport) -> Table:
    teacher, student = report.teacher, report.student
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("teacher", "student", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    judged = "accuracy" if student.val_accuracy is not None else "agreement"
    for split, field in (("test", f"test_{judged}"), ("validation", f"val_{judged}")):
        old, new = getattr(teacher, field), getattr(student, field)
        table.add_row(f"{split} {judged}", percent(old), percent(new), points(old, new))
    sizes = (("parameters", "params", ""), ("multiply-accumulates", "macs", "MAC"), ("file size", "size_bytes", "B"))
    for name, field, unit in sizes:
        old, new = getattr(teacher, field), getattr(student, field)
        table.add_row(name, count(old, unit), count(new, unit), ratio(old, new))
    return table


def _facts(report: RunReport) -> Table:
    """Return one line each for quality before fine-tuning, events, seconds per phase, workers, energy and files."""
    timing = report.timing
    phases = (
        f"teacher {timing.teacher_s:.1f}, calibration {timing.calibrate_s:.1f}, blocks {timing.distill_s:.1f} "
        f"(predicted {timing.predicted_makespan_s:.1f} from {timing.predicted_from}"
        f"{_prediction_error(report.blocks)}), "
        f"fine-tuning {timing.fine_tune_s:.1f}, total {timing.total_s:.1f}"
    )
    busy_s = [row.busy_s for row in report.workers]
    workers = f"{len(busy_s)} ({report.executor}, {report.scheduler}) on {report.device}"
    if busy_s:
        workers += f"; busy {min(busy_s):.1f} to {max(busy_s):.1f} s"
    workers += _joules(report.workers)
    peaks = [row.peak_bytes for row in report.workers if row.peak_bytes]
    if peaks:
        workers += f"; at most {count(max(peaks), 'B')} of memory"
    folder = Path(report.run_dir)
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("before fine-tuning", _quality(report.assembled))
    if report.reference == "teacher":
        grid.add_row("reference", "agreement with the teacher: the data has no labels, or they were not used")
    for number, line in enumerate(_kept_float(report.deployments)):
        grid.add_row("" if number else "kept in float32", Text(line))
    for number, line in enumerate(report.events):
        grid.add_row("" if number else "events", Text(line))
    grid.add_row("seconds", Text(phases))
    grid.add_row("workers", Text(workers))
    for number, line in enumerate(_energy(report.energy)):
        grid.add_row("" if number else "energy", Text(line))
    grid.add_row("student", Text(report.student.path or "not saved"))
    for row in report.deployments:
        if row.files:
            grid.add_row(f"in {row.target}", Text(", ".join(row.files)))
    grid.add_row("report", Text(f"{folder / 'report.html'}, with its data in report.json"))
    return grid


def _kept_float(rows: Iterable[Deployment]) -> Iterator[str]:
    """Yield for each network in 8-bit integers the layers that stay in float32, if there are any."""
    for row in rows:
        if row.kept_float:
            yield f"{row.model} in {row.target}: {names(row.kept_float)}"


def _joules(rows: tuple[WorkerReport, ...]) -> str:
    """Return the energy of the workers in the block phase as text, empty if it was not measured."""
    measured = [row for row in rows if row.busy_j is not None and row.idle_j is not None]
    if not measured:
        return ""
    busy_j, idle_j = (sum(getattr(row, part) for row in measured) for part in ("busy_j", "idle_j"))
    coverage = "" if len(measured) == len(rows) else f" ({len(measured)} of them measured)"
    return f"; {count(busy_j, 'J')} busy, {count(idle_j, 'J')} waiting{coverage}"


def _energy(energy: Mapping[str, Any]) -> Iterator[str]:
    """Yield the measured energy, its source and its gaps; without a meter, only the HTML page gives the reason."""
    total_j, notes = energy.get("total_j"), energy.get("notes", ())
    if total_j is None:
        yield f"{ABSENT}; report.html gives the reason" if notes else ABSENT
        return
    gap = ", partial: some energy was not measured" if energy.get("partial") else ""
    yield f"{count(total_j, 'J')} ({energy.get('source')}){gap}"
    yield from notes


def _prediction_error(rows: tuple[BlockReport, ...]) -> str:
    """Return the largest relative error of a predicted group time as text, empty if nothing was trained."""
    errors = [abs(row.predicted_s / row.seconds - 1) for row in rows if row.seconds and row.predicted_s is not None]
    return f"; largest error of a group: {max(errors):.0%}" if errors else ""


def _quality(model: ModelFacts) -> Text:
    judged, value = (
        ("accuracy", model.val_accuracy) if model.val_accuracy is not None else ("agreement", model.val_agreement)
    )
    return Text(f"{percent(value)} validation {judged}")
