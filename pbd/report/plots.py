"""Geometry of the plots: values are mapped to canvas coordinates. The templates draw the plots and set the colours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Values = Sequence[float | None]
"""One value for each epoch; `None`, NaN and infinity leave a gap in the line."""


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to fractions in [0, 1], linearly or logarithmically."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float | None], log: bool = False) -> "Scale":
        """Return a scale that covers all finite values; a logarithmic scale covers only the positive ones."""
        shown = [value for value in values if value is not None and _is_shown(value, log)]
        low, high = min(shown, default=1.0), max(shown, default=1.0)
        if log:
            return cls(low / 1.15, high * 1.15, log=True)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Return the fraction of the way from `low` to `high` at which a value lies."""
        low, high = self._transform(self.low), self._transform(self.high)
        return (self._transform(value) - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values on the scale: powers of ten on a logarithmic one, and multiples of them if few fit."""
        low, high = self.low, self.high
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for multiples in ((1,), (1, 3), (1, 2, 5)):
                ticks = [m * 10.0**power for power in powers for m in multiples if low <= m * 10.0**power <= high]
                if len(ticks) >= 2:
                    return ticks[:: math.ceil(len(ticks) / most)]
        step = _round_step((high - low) / most)
        return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def _transform(self, value: float) -> float:
        return math.log(value) if self.log else value


def _round_step(least: float) -> float:
    """Return the smallest number of the form 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    # The tolerance keeps a step that rounding errors put just above 1, 2 or 5.
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def _is_shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in canvas units, and its label."""

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
    """Lines over epochs, on a canvas of `width` by `height`. All lengths are canvas units, from the top left corner."""

    width: float
    height: float
    left: float
    bottom: float
    """Position of the horizontal axis."""
    right: float
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def over_epochs(
    lines: Mapping[str, Values],
    first: int = 0,
    scale: Scale | None = None,
    size: tuple[float, float] = (360.0, 200.0),
    log: bool = False,
) -> Plot:
    """Return a plot of lines with one value for each epoch.

    Args:
        lines: the values of each line, by name.
        first: the epoch of the first value.
        scale: the vertical scale, if several plots share one; by default it covers the values.
        size: width and height of the canvas.
        log: make the default scale logarithmic.
    """
    width, height = size
    left, right, top, bottom = 42.0, width - 8.0, 8.0, height - 22.0
    scale = scale or Scale.around([value for values in lines.values() for value in values], log)
    last = max(first + max(map(len, lines.values()), default=1) - 1, first + 1)

    def x_of(epoch: float) -> float:
        return left + (right - left) * (epoch - first) / (last - first)

    def y_of(value: float) -> float:
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
                tuple(
                    (x_of(epoch), y_of(value))
                    for epoch, value in enumerate(values, start=first)
                    if value is not None and _is_shown(value, scale.log)
                ),
            )
            for name, values in lines.items()
        ),
        x_ticks=tuple(Tick(x_of(epoch), str(epoch)) for epoch in range(first, last + 1) if epoch % every == 0),
        y_ticks=tuple(Tick(y_of(value), f"{value:.4g}") for value in scale.ticks()),
    )


def of_points(series: Mapping[str, Sequence[tuple[float, float]]], size: tuple[float, float] = (640.0, 360.0)) -> Plot:
    """Return a plot of points (x, y), those of each series joined by a line in their order.

    Args:
        series: the points of each series, by name.
        size: width and height of the canvas.
    """
    width, height = size
    left, right, top, bottom = 48.0, width - 12.0, 12.0, height - 44.0
    x_scale, y_scale = (
        Scale.around([point[axis] for points in series.values() for point in points]) for axis in (0, 1)
    )

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return left + (right - left) * x_scale.place(x), bottom - (bottom - top) * y_scale.place(y)

    return Plot(
        width,
        height,
        left,
        bottom,
        right,
        lines=tuple(Line(name, tuple(map(place, points))) for name, points in series.items()),
        x_ticks=tuple(Tick(place((x, y_scale.low))[0], f"{x:.4g}") for x in x_scale.ticks(8)),
        y_ticks=tuple(Tick(place((x_scale.low, y))[1], f"{y:.4g}") for y in y_scale.ticks()),
    )


@dataclass(frozen=True)
class Bar:
    """A bar in the timeline of a worker; start and lengths are percentages of the timeline."""

    label: str
    start: float
    length: float
    expected: float | None = None
    """The predicted length, cut off at the end of the timeline."""
    kind: str = ""


def axis(end: float, unit: str = "") -> list[Tick]:
    """Return the ticks of an axis from 0 to `end`; their positions are percentages of its length."""
    return [Tick(100 * value / end, f"{value:g}{unit}") for value in Scale(0.0, end).ticks(6)] if end > 0 else []
