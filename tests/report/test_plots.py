"""What the plots of report.html are drawn by: scales with round ticks, lines with gaps, bars within their lanes."""

import itertools
import math

import pytest

from pbd.report import plots, words
from pbd.report.plots import Scale

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("values", [(0.0031, 0.4), (0.12, 0.13), (5.0,), (1e-9, 1e9), (), (0.0, -1.0, None, math.nan)])
def test_a_logarithmic_scale_has_a_place_for_every_positive_value(values: tuple[float | None, ...]) -> None:
    scale = Scale.around(values, log=True)
    shown = [value for value in values if value is not None and value > 0]
    assert all(0 < scale.place(value) < 1 for value in shown)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(0 <= scale.place(tick) <= 1 for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize("values", [(0.0, 1.0), (93.2, 93.4), (-3.0, 1e6), (7.0, 7.0), (0.0,), ()])
def test_a_linear_scale_has_round_ticks(values: tuple[float, ...]) -> None:
    scale = Scale.around(values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(-1e-9 <= scale.place(tick) <= 1 + 1e-9 for tick in ticks)
    assert all(len(f"{tick:.4g}") <= 9 for tick in ticks)


def test_a_logarithmic_scale_prefers_powers_of_ten() -> None:
    assert Scale(0.002, 2.0, log=True).ticks() == pytest.approx([0.01, 0.1, 1.0])
    assert Scale(0.02, 0.6, log=True).ticks() == pytest.approx([0.03, 0.1, 0.3])


def test_lines_run_over_the_epochs_and_leave_gaps() -> None:
    plot = plots.over_epochs({"a": (0.4, None, 0.2, math.nan), "b": ()}, first=1, size=(200, 100))
    line, empty = plot.lines
    assert [x for x, _ in line.points] == pytest.approx([plot.left, plot.left + (plot.right - plot.left) * 2 / 3])
    assert line.points[0][1] < line.points[1][1], "what is smaller is lower"
    assert empty.points == ()
    assert [tick.label for tick in plot.x_ticks] == ["1", "2", "3", "4"]
    assert all(0 <= y <= plot.bottom for _, y in line.points)


@pytest.mark.parametrize("epochs", [1, 2, 7, 30, 300])
def test_an_axis_of_epochs_is_not_crowded(epochs: int) -> None:
    labels = [int(tick.label) for tick in plots.over_epochs({"a": [1.0] * (epochs + 1)}).x_ticks]
    assert 2 <= len(labels) <= 7
    assert len({after - before for before, after in itertools.pairwise(labels)}) == 1


def test_an_axis_begins_at_nothing() -> None:
    assert [(tick.at, tick.label) for tick in plots.axis(20.0, " s")] == [
        (0.0, "0 s"), (25.0, "5 s"), (50.0, "10 s"), (75.0, "15 s"), (100.0, "20 s"),
    ]  # fmt: skip
    assert plots.axis(0.0) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "not measured"),
        (4e-6, "0.0 s"),
        (12.25, "12.2 s"),
        (119.96, "2 min 0 s"),
        (2883.0, "48 min 3 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_read_well(seconds: float | None, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.00321, "3.21 ms"), (0.34, "340 ms"), (0.0034, "3.40 ms"), (0.9996, "1.00 s"), (12.25, "12.2 s")],
)
def test_latencies_have_three_digits(seconds: float, expected: str) -> None:
    assert words.latency(seconds) == expected


@pytest.mark.parametrize(
    ("times", "expected"), [(0.9, "0.90x as fast: slower"), (0.996, "1.00x as fast"), (11.72, "11.7x as fast")]
)
def test_what_is_slower_is_called_so(times: float, expected: str) -> None:
    assert words.speed(times) == expected
