"""Whether an accuracy is better than chance, for balanced and for very unequal classes."""

import numpy as np
import pytest

from pbd.learning.chance import Predictions

LABELS = np.arange(400) % 4


@pytest.mark.parametrize(
    ("classes", "labels", "better"),
    [
        (LABELS, LABELS, True),
        ((LABELS + 1) % 4, LABELS, False),
        (np.random.default_rng(0).integers(0, 4, 400), LABELS, False),
        (np.where(np.arange(400) % 5 < 2, LABELS, 0), LABELS, True),
        (np.zeros(400, int), (np.arange(400) % 20 == 0).astype(int), False),  # 95%, by always predicting one class
        (np.arange(1000) % 250 == 0, np.arange(1000) % 200 == 0, False),  # one of five rare images, and three others
        (np.arange(1000) % 400 == 0, np.arange(1000) % 200 == 0, True),  # three of five rare images
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
