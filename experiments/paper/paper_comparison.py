"""Print our figures and the paper's in one table, and write it as CSV and PNG.

The paper's tables are in data/paper_tables.json as they are printed; what its Figures 5 and 6 are compared with is in
data/paper_figures.json, with its source. What the paper does not print is a dash.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.csv_table import write_csv
from experiments.replays import DATA

WIDTH = 140
Row = dict[str, Any]
"""A line of a table, by key; None where a figure is not known."""


class Spread(NamedTuple):
    """A figure that was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of these."""
        return cls(statistics.median(values), min(values), max(values))


HARDWARE = (
    "The paper: four RTX 2080 Ti of an AMD server, with Dask four RTX 6000 of a cluster; VGG16 and ResNet50, "
    "each layer by itself, from noise. Ours: a worker's layers in one pass of the teacher, unless said otherwise."
)


@functools.cache
def table(number: int) -> list[Row]:
    """Return the rows of one of the paper's tables as printed, each with its source and the setting of the table."""
    printed = json.loads((DATA / "paper_tables.json").read_text(encoding="utf-8"))[f"table{number}"]
    same = {"setting": printed["setting"], "source": f"Table {number}"}
    return [dict(zip(printed["columns"], row, strict=True)) | same for row in printed["rows"]]


@functools.cache
def paper(section: str) -> list[Row]:
    """Return what one of the paper's figures is compared with, each with its source."""
    return json.loads((DATA / "paper_figures.json").read_text(encoding="utf-8"))[section]


def show(
    title: str,
    columns: Mapping[str, tuple[str, str]],
    rows: Sequence[Row],
    remarks: Sequence[str],
    width: int = WIDTH,
) -> None:
    """Print a table.

    Args:
        title: of the table.
        columns: by key, the heading and how numbers are written (a format specification).
        rows: the lines; what is missing or None is a dash.
        remarks: printed below, a line each.
        width: of the table, at least, in characters.
    """
    console = Console()
    console.width = max(console.width, width)  # a narrower table would cut its figures
    printed = Table(title=title)
    for heading, form in columns.values():
        printed.add_column(heading, justify="right" if form else "left", overflow="fold")
    for row in rows:
        printed.add_row(*(cell(row.get(key), form) for key, (_, form) in columns.items()))
    console.print(printed)
    for remark in remarks:
        console.print(remark, highlight=False, markup=False)


def cell(value: Any, form: str) -> str:
    """Return a figure as a table has it."""
    if value is None:
        return "-"
    if isinstance(value, Spread):
        alone = value.low == value.high
        return f"{value.median:{form}}" + ("" if alone else f" ({value.low:{form}} to {value.high:{form}})")
    return value if isinstance(value, str) else f"{value:{form}}"


def write(rows: Sequence[Row], settings: argparse.Namespace, name: str) -> None:
    """Write the rows to the folder for tables."""
    lines = [_flat(row) for row in rows]
    keys = dict.fromkeys(key for line in lines for key in line)
    write_csv([{key: line.get(key) for key in keys} for line in lines], settings.csv / f"{name}.csv")


def _flat(row: Row) -> Row:
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, Spread):
            flat |= {key: value.median, f"{key}_low": value.low, f"{key}_high": value.high}
        else:
            flat[key] = value
    return flat


def draw_lines(title: str, heading: str, series: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Write curves over the number of workers."""
    from matplotlib.figure import Figure

    from experiments.schedule_plots import save

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, points in series.items():
        ours = label.startswith("ours")
        axes.plot(*zip(*sorted(points), strict=True), "o-" if ours else "s--", label=label, alpha=1 if ours else 0.6)
    axes.set(title=title, xlabel="workers", ylabel=heading)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    save(figure, path)


def draw_bars(title: str, heading: str, bars: Mapping[str, float], path: Path) -> None:
    """Write a bar for each figure, ours in one colour and the paper's in another."""
    from matplotlib.figure import Figure

    from experiments.schedule_plots import save

    figure = Figure(figsize=(8, 1.2 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:blue" if label.startswith("ours") else "lightgrey" for label in bars]
    drawn = axes.barh(range(len(bars)), list(bars.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize="small")
    axes.set_yticks(range(len(bars)), list(bars), fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(title=title, xlabel=heading)
    save(figure, path)
