"""Geometry of the plots: figures in, places on a canvas out. The templates draw them, in the reader's colours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Figures = Sequence[float | None]
"""What a line shows; what is absent, or no finite number, is a gap."""


@dataclass(frozen=True)
class Scale:
    """Maps values to their share of the way from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float | None], log: bool = False) -> "Scale":
        """Return a scale on which all finite values (on a logarithmic one: positive ones) have a place."""
        shown = [value for value in values if _is_shown(value, log)]
        low, high = min(shown, default=1.0), max(shown, default=1.0)
        if log:
            return cls(low / 1.15, high * 1.15, log=True)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Return the value's share of the way."""
        low, high = self._measure(self.low), self._measure(self.high)
        return (self._measure(value) - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values on the scale; on a logarithmic one 1, 10, …, with 3 or 2 and 5 between where few fit."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for multiples in ((1,), (1, 3), (1, 2, 5)):
                found = [m * 10.0**power for power in powers for m in multiples if low <= m * 10.0**power <= high]
                if len(found) >= 2:
                    return found[:: math.ceil(len(found) / most)]
        step = _round_step((high - low) / most)
        return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def _measure(self, value: float) -> float:
        return math.log(value) if self.log else value


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, … times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def _is_shown(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


@dataclass(frozen=True)
class Tick:
    """A value's place on an axis, in canvas units, and how it is said."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line of a plot, in canvas units."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """Lines over epochs, on a canvas of `width` by `height`; the plot itself lies within the margins."""

    width: float
    height: float
    left: float
    bottom: float
    """The line of the horizontal axis, from above."""
    right: float
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def over_epochs(
    lines: Mapping[str, Figures],
    first: int = 0,
    scale: Scale | None = None,
    size: tuple[float, float] = (360.0, 200.0),
    log: bool = False,
) -> Plot:
    """Return a plot of figures, one for each epoch.

    Args:
        lines: by name.
        first: the epoch of the first figure.
        scale: of the vertical axis, where several plots share one; around the figures by default.
        size: of the canvas.
        log: make the vertical axis logarithmic.
    """
    width, height = size
    left, right, top, bottom = 42.0, width - 8.0, 8.0, height - 22.0
    scale = scale or Scale.around([value for figures in lines.values() for value in figures], log)
    last = max(first + max(map(len, lines.values()), default=1) - 1, first + 1)

    def across(epoch: float) -> float:
        return left + (right - left) * (epoch - first) / (last - first)

    def down(value: float) -> float:
        return bottom - (bottom - top) * scale.place(value)

    every = max(1, round(_round_step((last - first) / 6)))
    return Plot(
        width,
        height,
        left,
        bottom,
        right,
        lines=tuple(
            Line(
                name,
                tuple((across(first + i), down(v)) for i, v in enumerate(figures) if _is_shown(v, scale.log)),
            )
            for name, figures in lines.items()
        ),
        x_ticks=tuple(Tick(across(epoch), str(epoch)) for epoch in range(first, last + 1) if epoch % every == 0),
        y_ticks=tuple(Tick(down(value), f"{value:.4g}") for value in scale.ticks()),
    )


@dataclass(frozen=True)
class Bar:
    """A stretch of a lane, in percent of its length."""

    label: str
    start: float
    length: float
    expected: float | None = None
    """The length that was predicted, no further than the lane's end."""
    kind: str = ""


def axis(most: float, said: str = "") -> list[Tick]:
    """Return the ticks of an axis from 0 to `most`, in percent of its length."""
    return [Tick(100 * value / most, f"{value:g}{said}") for value in Scale(0.0, most).ticks(6)] if most > 0 else []
