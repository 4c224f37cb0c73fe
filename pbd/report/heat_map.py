"""Geometry of a heat map: one cell for each pair of a row and a column. The template draws it and sets the colours."""

from collections.abc import Sequence
from dataclasses import dataclass

CELL = 16.0
_LETTER = 6.2
"""Width of a letter of a label."""
_GAP = 6.0
_LONGEST = 32
"""Letters of a label; longer names are cut."""


@dataclass(frozen=True)
class Cell:
    """A value at its position, in canvas units from the top left corner."""

    x: float
    y: float
    value: float | None
    title: str


@dataclass(frozen=True)
class Label:
    """The name of a row, which ends at a position, or of a column, which begins there, upward."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """Values between 0 and 1 on a canvas of `width` by `height`."""

    width: float
    height: float
    cells: tuple[Cell, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]


def of(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]) -> HeatMap:
    """Return the heat map of a matrix.

    Args:
        rows: names.
        columns: names.
        values: one sequence for each row; `None` leaves a cell empty.
    """
    row_labels, column_labels = ([_shortened(name) for name in names] for names in (rows, columns))
    left, top = (2 * _GAP + _LETTER * max(map(len, names), default=0) for names in (row_labels, column_labels))
    cells = tuple(
        Cell(left + CELL * j, top + CELL * i, value, f"{row}, {column}: {'-' if value is None else f'{value:.3f}'}")
        for i, (row, line) in enumerate(zip(rows, values, strict=True))
        for j, (column, value) in enumerate(zip(columns, line, strict=True))
    )
    return HeatMap(
        left + CELL * len(columns) + _GAP,
        top + CELL * len(rows) + _GAP,
        cells,
        tuple(Label(left - _GAP, top + CELL * (i + 0.5), name) for i, name in enumerate(row_labels)),
        tuple(Label(left + CELL * (j + 0.5), top - _GAP, name) for j, name in enumerate(column_labels)),
    )


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
