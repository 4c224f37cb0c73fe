"""Whether an accuracy is better than chance, for balanced and for very unequal classes."""

import numpy as np
import pytest
from scipy import stats

from pbd.learning.chance import Predictions, binomial_tail

LABELS = np.arange(400) % 4


@pytest.mark.parametrize(
    ("successes", "trials", "probability"), [(0, 10, 0.1), (5, 10, 0.5), (130, 1000, 0.1), (1000, 1000, 0.99)]
)
def test_the_tail_is_that_of_the_binomial_distribution(successes: int, trials: int, probability: float) -> None:
    expected = stats.binom.sf(successes - 1, trials, probability)
    assert binomial_tail(successes, trials, probability) == pytest.approx(expected, rel=1e-6)


def test_the_tail_at_the_ends_of_the_range() -> None:
    assert (binomial_tail(3, 10, 0.0), binomial_tail(3, 10, 1.0), binomial_tail(10, 10, 0.5)) == (0.0, 1.0, 2**-10)


@pytest.mark.parametrize(
    ("classes", "labels", "better"),
    [
        (LABELS, LABELS, True),
        ((LABELS + 1) % 4, LABELS, False),
        (np.random.default_rng(0).integers(0, 4, 400), LABELS, False),
        (np.where(np.arange(400) % 5 < 2, LABELS, 0), LABELS, True),
        (np.zeros(400, int), (np.arange(400) % 20 == 0).astype(int), False),  # 95%, by always predicting one class
        (np.arange(400) % 100 == 0, np.arange(400) % 50 == 0, True),  # half of the rare class
        (LABELS[:5], LABELS[:5], False),
        (np.zeros(0, int), np.zeros(0, int), False),
    ],
)
def test_better_than_chance(classes: np.ndarray, labels: np.ndarray, better: bool) -> None:
    assert Predictions(classes, labels).is_better_than_chance == better


def test_kappa_is_zero_for_chance_and_one_for_certainty() -> None:
    assert Predictions(LABELS, LABELS).kappa == 1.0
    assert Predictions(np.zeros(400, int), LABELS).kappa == 0.0
    assert Predictions(np.zeros(400, int), np.zeros(400, int)).kappa == 0.0
