"""Learning curves: the best epoch wins, plateaus are detected, errors that are not finite never win."""

import math

import pytest

from pbd.learning.early_stopping import LearningCurve

pytestmark = pytest.mark.fast


def curve_of(*errors: float) -> LearningCurve:
    """Return a curve with these errors; the weights of an epoch are its number, 0 before training."""
    curve = LearningCurve()
    for epoch, error in enumerate(errors):
        curve.add(error, epoch, loss=None if epoch == 0 else 10.0 * error)
    return curve


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((0.5,), 0),
        ((0.5, 0.4, 0.3), 2),
        ((0.5, 0.3, 0.4), 1),
        ((0.2, 0.3, 0.4), 0),
        ((0.5, 0.3, 0.3), 1),
        ((0.5, math.nan, 0.4), 2),
        ((0.5, 0.4, math.nan), 1),
        ((0.5, math.inf), 0),
        ((math.nan,), 0),
        ((math.nan, 0.5, 0.4), 2),
        ((math.inf, 0.5), 1),
        ((math.nan, math.nan), 0),
    ],
)
def test_the_weights_of_the_best_epoch_are_kept(errors: tuple[float, ...], best: int) -> None:
    assert curve_of(*errors).best_weights == best


def test_the_curve_records_every_epoch() -> None:
    curve = curve_of(0.5, 0.4, 0.45)
    assert curve.errors == [0.5, 0.4, 0.45]
    assert curve.losses == [4.0, 4.5], "nothing was trained before the first epoch"
    assert curve.lowest_error == 0.4


@pytest.mark.parametrize(
    ("errors", "patience", "flat"),
    [
        ((0.5,), 1, False),
        ((0.5, 0.499), 1, True),
        ((0.5, 0.49), 1, False),
        ((0.5, 0.6), 1, True),
        ((0.5, 0.3, 0.2, 0.1), 2, False),
        ((0.5, 0.3, 0.3, 0.299), 2, True),
        ((0.5, 0.3, 0.3, 0.29), 2, False),
        ((0.5, 0.3, 0.299), 2, False),
        ((0.5, 0.3, 0.4, 0.25), 2, False),
        ((0.5, 0.3, 0.4, 0.35, 0.31), 3, True),
        ((0.5, 0.1, 0.2, 0.15), 2, True),
        ((0.5, 0.1, 0.2, 0.15, 0.11), 2, True),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), 0, False),
        ((0.5, 0.5, 0.5), 3, False),
    ],
)
def test_a_curve_is_flat_when_patience_brought_less_than_a_hundredth(
    errors: tuple[float, ...], patience: int, flat: bool
) -> None:
    assert curve_of(*errors).has_plateaued(patience) is flat


def test_many_small_steps_within_the_patience_are_not_flat() -> None:
    errors = [0.995**epoch for epoch in range(8)]
    assert not curve_of(*errors).has_plateaued(patience=4)
    assert curve_of(*errors).has_plateaued(patience=1)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_divergence_is_of_the_last_epoch(broken: float) -> None:
    assert curve_of(0.5, broken).diverged
    assert curve_of(broken).diverged
    assert not curve_of(0.5, broken, 0.4).diverged
    assert not curve_of(0.5).diverged


def test_a_loss_that_is_not_finite_is_divergence_too() -> None:
    curve = curve_of(0.5)
    curve.add(0.4, "weights", loss=math.nan)
    assert curve.diverged


def test_an_excluded_start_is_neither_the_best_epoch_nor_part_of_a_plateau() -> None:
    curve = LearningCurve(include_start=False)
    curve.add(0.5, "start")
    assert curve.best_weights == "start", "there may be no epoch"
    curve.add(2.0, "first", loss=1.0)
    assert curve.best_weights == "first"
    curve.add(1.995, "second", loss=1.0)
    assert (curve.has_plateaued(1), curve.has_plateaued(2)) == (True, False)
    assert curve.best_weights == "second"
