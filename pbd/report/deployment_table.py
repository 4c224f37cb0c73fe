"""The table of networks in their targets, for a terminal: quality, size, and latency side by side."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from pbd.records import Deployment
from pbd.report import deployments
from pbd.report.words import images, is_slower, latency, percent, times

WIDE = 100
"""Columns that a terminal needs for the whole table."""


@dataclass(frozen=True)
class DeploymentTable:
    """A row for each network and target; a narrow terminal has no room for the number of kept layers."""

    rows: tuple[Deployment, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        judged = "agreement" if self.rows[0].test_accuracy is None else "accuracy"
        table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("model", no_wrap=True)
        table.add_column("target", overflow="fold")
        for name in (f"test\n{judged}" if wide else f"{judged[:3]}.", "kB", *["layers in\nfloat32"] * wide):
            table.add_column(name, justify="right", no_wrap=True)
        sizes = deployments.batches(self.rows)
        for batch in sizes:
            for name in (images(batch).replace("one", "1"), "x\nteacher", "x\nint8"):
                table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            cells = [percent(quality(row), 2 if wide else 1), f"{row.size_bytes / 1000:.0f}"]
            if wide:
                cells.append(str(len(row.kept_float)) if deployments.is_int8(row) else "all")
            table.add_row(row.model, row.target, *cells, *[cell for batch in sizes for cell in _speed(row, batch)])
        yield table
        yield Text("Median time of a pass; x: times as fast as the teacher, and as the teacher in int8.", style="dim")


def quality(row: Deployment) -> float:
    """Return the accuracy on test images, without labels the agreement with the teacher, in [0, 1]."""
    return row.test_agreement if row.test_accuracy is None else row.test_accuracy


def _speed(row: Deployment, batch: int) -> tuple[Text | str, ...]:
    """Return the median time and both relative speeds with one batch size."""
    measured = deployments.at_batch(row, batch)
    if measured is None:
        return ("-", "-", "-")
    speeds = (measured.times_as_fast, measured.times_as_fast_as_int8)
    shown = [Text(times(speed), "yellow" if speed is not None and is_slower(speed) else "") for speed in speeds]
    return (latency(measured.seconds), *shown)
