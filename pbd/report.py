"""What a run says at its end: `report.json` (version 1) and a summary for people, both from one `RunReport`."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from pbd.journal import Journal
from pbd.records import BlockReport, ModelFacts, RunReport, Timing, WorkerReport

_STYLES = {"accepted": "green", "rejected": "yellow", "given_back": "yellow", "failed": "bold red", "skipped": "dim"}
_ASSEMBLED = ("val_accuracy", "val_agreement", "val_kl")
_WIDE = 100  # columns from which the reasons fit beside the figures


def to_json(report: RunReport) -> dict[str, Any]:
    """Return the content of `report.json`; NaN and infinity, which JSON has no word for, become null."""
    return json_safe(
        {
            "version": report.version,
            "config": report.config,
            "versions": report.versions,
            "device": report.device,
            "teacher": asdict(report.teacher),
            "assembled": {name: getattr(report.assembled, name) for name in _ASSEMBLED},
            "student": asdict(report.student),
            "blocks": [asdict(row) for row in report.blocks],
            "workers": [asdict(row) for row in report.workers],
            "timing": asdict(report.timing),
            "energy": {"source": "none", "total_j": None} | report.energy,
            "executor": report.executor,
            "scheduler": report.scheduler,
            "groups": report.groups,
            "judged_by": report.judged_by,
            "fine_tune_history": report.fine_tune_history,
            "story": report.story,
            "run_dir": report.run_dir,
        }
    )


def write(report: RunReport, journal: Journal) -> None:
    """Write `report.json` and `summary.txt` into the run directory."""
    journal.write_bytes("summary.txt", render(report).encode())
    journal.write_json("report.json", to_json(report))


def read(journal: Journal) -> RunReport:
    """Return the report of a run that is complete."""
    said = json.loads(journal.file("report.json").read_bytes())
    histories = ("loss_history", "nmse_history")
    rows = [row | {name: tuple(row[name]) for name in histories} for row in said["blocks"]]
    return RunReport(
        **said
        | {
            "teacher": ModelFacts(**said["teacher"]),
            "assembled": ModelFacts(said["student"]["params"], said["student"]["macs"], **said["assembled"]),
            "student": ModelFacts(**said["student"]),
            "blocks": tuple(BlockReport(**row) for row in rows),
            "workers": tuple(WorkerReport(**row) for row in said["workers"]),
            "timing": Timing(**said["timing"]),
            "groups": tuple(tuple(group) for group in said["groups"]),
            "fine_tune_history": tuple(said["fine_tune_history"]),
            "story": tuple(said["story"]),
        }
    )


def json_safe(value: Any) -> Any:
    """Return `value` in plain JSON types: non-finite floats as None, arrays and tuples as lists, others as text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return str(value)


def render(report: RunReport, width: int = 120) -> str:
    """Return the summary as plain text, for `summary.txt`."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"


def summary(report: RunReport) -> Group:
    """Return the summary for a terminal: what was decided per layer, before and after, times and paths."""
    return Group(
        Text(""),
        _Layers(report.blocks, "accuracy" if report.judged_by == "labels" else "agreement"),
        _headline(report),
        Text(""),
        _before_and_after(report.teacher, report.student),
        Text(""),
        _facts(report),
    )


@dataclass(frozen=True)
class _Layers:
    """The table of layers; where it is narrow, the reasons follow it instead of taking a column."""

    rows: tuple[BlockReport, ...]
    judged: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
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
    if wide:
        table.add_column("why", overflow="fold", min_width=16)
    for name in ("nMSE", f"{judged}\nswapped" if wide else f"{judged[:3]}.", "parameters", "MACs", "worker", "seconds"):
        short = {"worker": "wkr", "seconds": "s"}
        table.add_column(name if wide else short.get(name, name), justify="right", no_wrap=True)
    for row in rows:
        reason = [Text(row.reason)] if wide else []
        table.add_row(
            Text(row.layer),
            Text(row.status.replace("_", " "), style=_STYLES.get(row.status, "")),
            *reason,
            *_figures(row),
        )
    return table


def _figures(row: BlockReport) -> tuple[str, ...]:
    def change(before: int, after: int) -> str:
        old, new = (_count(value).replace(" ", "") for value in (before, after))
        return f"{old}->{new}" if row.status in ("accepted", "rejected", "given_back") else old

    return (
        "-" if row.nmse is None else f"{row.nmse:.4f}" if row.nmse < 10 else f"{row.nmse:.1e}",
        _percent(row.val_agreement if row.val_accuracy is None else row.val_accuracy, 1)
        if row.nmse is not None
        else "-",
        change(row.params_before, row.params_after),
        change(row.macs_before, row.macs_after),
        "-" if row.worker is None else str(row.worker),
        "-" if row.seconds is None else f"{row.seconds:.1f}",
    )


def _headline(report: RunReport) -> Text:
    counts = {status: sum(row.status == status for row in report.blocks) for status in _STYLES}
    line = Text(f"{counts.pop('accepted')} of {len(report.blocks)} layers replaced", style="bold")
    for status, count in counts.items():
        if count:
            line.append(f", {count} {status.replace('_', ' ')}", style=_STYLES[status])
    return line


def _before_and_after(teacher: ModelFacts, student: ModelFacts) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("teacher", "student", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    judged = "accuracy" if student.val_accuracy is not None else "agreement"
    for split, field in (("test", f"test_{judged}"), ("validation", f"val_{judged}")):
        name, old, new = f"{split} {judged}", getattr(teacher, field), getattr(student, field)
        known = old is not None and new is not None
        table.add_row(name, _percent(old), _percent(new), f"{100 * (new - old):+.2f} points" if known else "-")
    sizes = (("parameters", "params", ""), ("multiply-accumulates", "macs", "MAC"), ("file size", "size_bytes", "B"))
    for name, field, unit in sizes:
        old, new = getattr(teacher, field), getattr(student, field)
        table.add_row(name, _count(old, unit), _count(new, unit), _ratio(old, new))
    return table


def _facts(report: RunReport) -> Table:
    """What is left to say, a line each: seconds per phase, energy, who did it, where it lies."""
    timing, energy = report.timing, report.energy
    phases = (
        f"teacher {timing.teacher_s:.1f}, calibration {timing.calibrate_s:.1f}, blocks {timing.distill_s:.1f} "
        f"(predicted {timing.predicted_makespan_s:.1f} from {timing.predicted_from}{_misjudged(report.blocks)}), "
        f"fine-tuning {timing.fine_tune_s:.1f}, total {timing.total_s:.1f}"
    )
    total_j, busy_s = energy.get("total_j"), [row.busy_s for row in report.workers]
    workers = f"{len(busy_s)} ({report.executor}, {report.scheduler}) on {report.device}"
    if busy_s:
        workers += f"; busy {min(busy_s):.1f} to {max(busy_s):.1f} s"
    peaks = [row.peak_bytes for row in report.workers if row.peak_bytes]
    if peaks:
        workers += f"; at most {_count(max(peaks), 'B')} of memory"
    folder = Path(report.run_dir)
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("before fine-tuning", _quality(report.assembled))
    if report.judged_by == "teacher":
        grid.add_row("judged by", "agreement with the teacher: the data has no labels, or they were not used")
    for number, line in enumerate(report.story):
        grid.add_row("" if number else "what happened", Text(line))
    grid.add_row("seconds", Text(phases))
    grid.add_row("workers", Text(workers))
    grid.add_row("energy", "not measured" if total_j is None else Text(f"{total_j:.1f} J ({energy.get('source')})"))
    grid.add_row("student", Text(report.student.path or "not saved"))
    grid.add_row("report", Text(str(folder / "report.json")))
    return grid


def _misjudged(rows: tuple[BlockReport, ...]) -> str:
    """Say how far the group that was predicted worst was off; nothing where nothing was trained."""
    off = [abs(row.predicted_s / row.seconds - 1) for row in rows if row.seconds and row.predicted_s is not None]
    return f"; a group off by {max(off):.0%} at most" if off else ""


def _quality(model: ModelFacts) -> Text:
    judged, value = (
        ("accuracy", model.val_accuracy) if model.val_accuracy is not None else ("agreement", model.val_agreement)
    )
    return Text(f"{_percent(value)} validation {judged}")


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "not measured" if fraction is None else f"{fraction:.{digits}%}"


def _count(value: float | None, unit: str = "") -> str:
    """Return a count with one decimal and a prefix of a thousand: 1.2 M, 40.6 M MAC, 1.4 MB."""
    if value is None:
        return "not measured"
    scaled, prefix = float(value), ""
    for larger in ("k", "M", "G", "T"):
        if abs(scaled) < 999.95:  # where one decimal would round up to 1000.0
            break
        scaled, prefix = scaled / 1000, larger
    number = f"{scaled:.1f}" if prefix else f"{value:g}"
    ending = f"{prefix}{unit}" if unit == "B" else f"{prefix} {unit}"
    return f"{number} {ending.strip()}".strip()


def _ratio(old: float | None, new: float | None) -> str:
    if not old or not new:
        return "-"
    return f"{old / new:.1f}x smaller" if new <= old else f"{new / old:.1f}x larger"
