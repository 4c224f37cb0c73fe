"""Compare the energy of two runs from their traces: speedup, greenup and powerup (Abdulsalam et al., 2015).

    python -m profiling.greenup reference.csv optimised.csv

A trace is a CSV file of `profiling.sample`, or any table with a column `t_s` (seconds) and for each device a column of
joules since the start (such as `rapl_package-0_j`) or of watts (such as `rapl_package-0_w`, integrated by the trapezoid
rule). Speedup = time of the reference / time of the optimised run. Greenup = energy of the reference / energy of the
optimised run. Powerup = speedup / greenup = ratio of their mean powers. A greenup of 1.29 saves 22.5% of the energy.
"""

import argparse
import csv
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbd import command_line
from pbd.command_line import Parser
from pbd.energy.replay import Recording, replay
from pbd.energy.sensors import Device
from pbd.errors import BadInputError, MissingInputError

TIME = "t_s"
COLUMN = re.compile(r"(?P<source>\w+)_(?P<device>(?P<kind>gpu|package)-.+)_(?P<unit>[jw])")
"""Columns with energy. Cores are left out because they are part of their package."""


@dataclass(frozen=True)
class Measured:
    """Time and energy of a run."""

    name: str
    seconds: float
    by_kind_j: dict[str, float]
    """Joules of the GPUs (`gpu`) and of the processor packages (`package`), if they were measured."""
    source: str

    @property
    def joules(self) -> float:
        return sum(self.by_kind_j.values())

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


@dataclass(frozen=True)
class Comparison:
    """The ratios of a run to its reference."""

    speedup: float
    greenup: float
    powerup: float

    @classmethod
    def of(cls, reference: Measured, optimised: Measured) -> "Comparison":
        """Compare two runs.

        Raises:
            BadInputError: the runs were measured on different kinds of device.
        """
        kinds = [" and ".join(sorted(run.by_kind_j)) for run in (reference, optimised)]
        if kinds[0] != kinds[1]:
            raise BadInputError(
                "both traces must measure the same kinds of device. "
                f"Received: {kinds[0]} in {reference.name}, {kinds[1]} in {optimised.name}. Measure both alike."
            )
        speedup, greenup = reference.seconds / optimised.seconds, reference.joules / optimised.joules
        return cls(speedup, greenup, speedup / greenup)


def read_trace(path: Path) -> Measured:
    """Return the time and the energy in a trace.

    Raises:
        MissingInputError: the file cannot be read.
        BadInputError: it is not a trace, or lacks the energy of a part of the run.
    """
    columns = _read_columns(path)
    times_s = _figures(columns, TIME, path)
    if not times_s or times_s != sorted(times_s) or times_s[0] == times_s[-1]:
        raise BadInputError(f"a trace must have rows in order of time. Received: {path}. Measure again.")
    energy_columns = [match for name in columns if (match := COLUMN.fullmatch(name))]
    if not energy_columns:
        raise BadInputError(
            f"a trace must contain energy (columns like rapl_package-0_j). Received: {path}, without. "
            "Measure again with a meter that profiling.sample can read; it prints what is missing."
        )
    by_kind_j: dict[str, float] = {}
    # One column for each device: joules come last in this order, so they replace watts.
    by_device = {match["device"]: match for match in sorted(energy_columns, key=lambda match: match["unit"] == "j")}
    for match in by_device.values():
        joules = _joules(match, times_s, _figures(columns, match[0], path))
        by_kind_j[match["kind"]] = by_kind_j.get(match["kind"], 0.0) + joules
    if sum(by_kind_j.values()) <= 0:
        raise BadInputError(f"a run must take energy. Received: {path}, with 0 J in total. Check the meter.")
    source = "+".join(dict.fromkeys(match["source"] for match in energy_columns))
    return Measured(path.name, times_s[-1] - times_s[0], by_kind_j, source)


def _joules(match: re.Match[str], times_s: Sequence[float], figures: Sequence[float]) -> float:
    if match["unit"] == "j":
        return figures[-1] - figures[0]
    device = Device(match["kind"], match["device"], match["source"], "", "")
    return replay(times_s, [Recording(device, figures)]).traces[0].total_j


def _read_columns(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restval=""))
    except OSError as error:
        raise MissingInputError(f"a trace must be readable. Received: {str(path)!r}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"a trace is a table in CSV. Received: {str(path)!r}: {error}. Measure again.") from error
    return {name: [row[name] for row in rows] for name in rows[0] if name} if rows else {}


def _figures(columns: dict[str, list[str]], name: str, path: Path) -> list[float]:
    """Return a column as numbers.

    Raises:
        BadInputError: the column is missing, or has an empty cell, as after the loss of a meter.
    """
    cells = columns.get(name)
    if cells is None:
        raise BadInputError(f"a trace has a column {name!r}. Received: {path}, without. Measure with profiling.sample.")
    figures = []
    for row, cell in enumerate(cells, 1):
        try:
            figures.append(float(cell))
        except ValueError:
            figures.append(math.nan)
        if not math.isfinite(figures[-1]):
            raise BadInputError(
                f"{name} must have a number in every row. Received: {cell!r} in row {row} of {len(cells)} of {path}. "
                "Measure again."
            )
    return figures


def as_table(reference: Measured, optimised: Measured, comparison: Comparison) -> Table:
    """Return both runs and their comparison for a terminal."""
    saved = 1 - 1 / comparison.greenup
    table = Table(
        title=f"speedup {comparison.speedup:.3f}   greenup {comparison.greenup:.3f}   powerup {comparison.powerup:.3f}",
        caption=f"{abs(saved):.1%} {'less' if saved >= 0 else 'more'} energy than the reference",
    )
    table.add_column("")
    kinds = sorted(reference.by_kind_j)
    for heading in ("seconds", *(f"{kind}, J" for kind in kinds), "energy, J", "mean power, W", "source"):
        table.add_column(heading, justify="right")
    for word, run in (("reference", reference), ("optimised", optimised)):
        joules = [f"{joules:,.1f}" for joules in (*(run.by_kind_j[kind] for kind in kinds), run.joules)]
        table.add_row(Text(f"{run.name} ({word})"), f"{run.seconds:,.1f}", *joules, f"{run.watts:,.1f}", run.source)
    return table


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag is wrong, or a trace is missing; the message is one line.
    """
    parser = Parser("greenup", __doc__)
    parser.add_argument("reference", type=Path, help="trace of the reference run")
    parser.add_argument("optimised", type=Path, help="trace of the run to compare with it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and print the table; return the exit code (see `pbd.errors`)."""

    def command(arguments: Sequence[str]) -> None:
        settings = parse(arguments)
        reference, optimised = read_trace(settings.reference), read_trace(settings.optimised)
        Console().print(as_table(reference, optimised, Comparison.of(reference, optimised)))

    return command_line.run("greenup", command, argv)


if __name__ == "__main__":
    sys.exit(main())
