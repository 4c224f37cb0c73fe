"""Draw assignments as Gantt charts, and speedup and efficiency over the number of workers, as PNG files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.measured_runs import Execution, Timeline, makespan_s
from experiments.replays import Row
from pbd.records import TaskGroup
from pbd.scheduling.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "round_robin": ("tab:orange", "o", "-"),
    "wfd": ("tab:blue", "s", "-"),
    "contiguous": ("tab:green", "^", "-"),
    "pull": ("tab:red", "x", "--"),
    "work_stealing": ("tab:purple", "+", ":"),
}
"""Colour, marker and line of each scheduler, told apart also where they coincide."""
NARROW = 0.035
"""A bar shorter than this part of the axis has no room for its label."""
DPI = 130


@dataclass(frozen=True)
class Chart:
    """One Gantt chart."""

    title: str
    timeline: Timeline
    bound_s: float
    """What no assignment can beat."""


def file_name(*words: str) -> str:
    """Return a file name of these words.

    Example:
        >>> file_name("Gantt", "VGG16, grouped")
        'gantt-vgg16-grouped.png'
    """
    return "-".join(re.sub(r"[^a-z0-9_]+", "-", word.lower()).strip("-") for word in words) + ".png"


def compared(done: Sequence[Execution]) -> list[list[Chart]]:
    """Return two columns of charts: what the replay says, and what was measured."""
    return [[Chart(f"{one.scheduler}, replayed", one.predicted, one.bound_s) for one in done], measured(done)]


def measured(done: Sequence[Execution]) -> list[Chart]:
    """Return a column of charts: what was measured."""
    return [Chart(f"{one.scheduler}, measured", one.measured, one.bound_s) for one in done]


def draw_gantt(title: str, columns: Sequence[Sequence[Chart]], path: Path) -> None:
    """Write Gantt charts on one time axis: a column of charts for each sequence.

    Bars are groups, numbered and coloured by their layers' place in the network; hatched is idle time.
    """
    from matplotlib.figure import Figure

    charts = [chart for column in columns for chart in column]
    tall = sum(1.0 + 0.26 * len(chart.timeline) for chart in columns[0])
    figure = Figure(figsize=(7.5 * len(columns), 1.1 + tall), layout="constrained")
    axes = figure.subplots(len(columns[0]), len(columns), sharex=True, squeeze=False)
    end_s = 1.02 * max(makespan_s(chart.timeline) for chart in charts)
    layers = 1 + max(task.layer.index for c in charts for spans in c.timeline for s in spans for task in s.group.tasks)
    for at, column in enumerate(columns):
        for line, chart in enumerate(column):
            _gantt(axes[line][at], chart, end_s, layers)
        axes[-1][at].set_xlabel("seconds since the block phase began")
    figure.suptitle(title)
    figure.legend(
        handles=_gantt_legend(), loc="outside lower center", ncols=len(columns) * 2, fontsize="small", frameon=False
    )
    save(figure, path)


def _gantt(axes: "Axes", chart: Chart, end_s: float, layers: int) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"]
    whole_s = makespan_s(chart.timeline)
    for worker, spans in enumerate(chart.timeline):
        axes.barh(worker, whole_s, facecolor="none", edgecolor="lightgrey", hatch="////", linewidth=0)
        for span in spans:
            place = span.group.tasks[0].layer.index / max(1, layers - 1)
            seconds = span.ended_s - span.started_s
            axes.barh(worker, seconds, left=span.started_s, color=colours(place), edgecolor="white", linewidth=0.8)
            if seconds > NARROW * end_s:
                middle = span.started_s + seconds / 2
                colour = "white" if place < 0.6 else "black"
                axes.text(middle, worker, _label(span.group), ha="center", va="center", color=colour, fontsize="small")
    axes.axvline(whole_s, color="black", linewidth=1.2)
    axes.axvline(chart.bound_s, color="tab:red", linewidth=1.2, linestyle=":")
    axes.set_xlim(0, end_s)
    axes.set_yticks(range(len(chart.timeline)), [str(worker) for worker in range(len(chart.timeline))])
    axes.set_ylabel("worker")
    axes.invert_yaxis()
    axes.set_title(f"{chart.title}: {whole_s:.4g} s", fontsize="medium", loc="left")


def _label(group: TaskGroup) -> str:
    places = [task.layer.index + 1 for task in group.tasks]
    if len(places) == 1:
        return str(places[0])
    together = places == list(range(places[0], places[-1] + 1))
    return f"{places[0]}–{places[-1]}" if together else f"{places[0]}, …"


def _gantt_legend() -> list:
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=colormaps["viridis"](0.5), label="layers, by their place in the network"),
        Patch(facecolor="none", edgecolor="lightgrey", hatch="////", label="idle"),
        Line2D([], [], color="black", label="the last worker is done"),
        Line2D([], [], color="tab:red", linestyle=":", label="lower bound: no assignment is faster"),
    ]


def draw_curves(title: str, rows: Sequence[Row], path: Path) -> None:
    """Write speedup and efficiency over the number of workers, with what the lower bound allows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    speedup, efficiency = figure.subplots(1, 2)
    first = [row for row in rows if row.scheduler == rows[0].scheduler]
    workers = [row.workers for row in first]
    bound = [row.speedup * row.ratio for row in first]
    speedup.plot(workers, bound, color="black", linewidth=3, alpha=0.25, label="lower bound allows")
    per_worker = [allowed / count for allowed, count in zip(bound, workers, strict=True)]
    efficiency.plot(workers, per_worker, color="black", linewidth=3, alpha=0.25)
    for name in SCHEDULERS:
        own = [row for row in rows if row.scheduler == name]
        colour, marker, line = STYLES[name]
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 6, "fillstyle": "none"}
        speedup.plot(workers, [row.speedup for row in own], label=name, **style)
        efficiency.plot(workers, [row.efficiency for row in own], **style)
    for axes in (speedup, efficiency):
        axes.set_xscale("log", base=2)
        ticks = [count for count in workers if count & (count - 1) == 0]
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.set_xlabel("workers")
        axes.grid(alpha=0.3)
    speedup.set_ylabel("speedup over one worker")
    speedup.set_ylim(bottom=0)
    efficiency.set_ylabel("efficiency: speedup per worker")
    efficiency.set_ylim(0, 1.05)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=6, fontsize="small", frameon=False)
    save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
