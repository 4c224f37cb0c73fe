"""Linear CKA equals the formulas of Kornblith et al. (2019) on a fixed tensor, in both forms."""

import numpy as np
import pytest

from pbd.analysis import cka

pytestmark = pytest.mark.fast


@pytest.fixture
def layers() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    first, noise = draws.standard_normal((5, 200)), draws.standard_normal((4, 200))
    second = draws.standard_normal((4, 5)) @ first + 2 * noise
    first[3] *= 10
    return first, second


@pytest.mark.parametrize("forms", [(False, False), (True, True), (True, False), (False, True), (None, None)])
def test_the_value_is_that_of_the_paper_in_every_form(
    layers: tuple[np.ndarray, np.ndarray], forms: tuple[bool | None, bool | None]
) -> None:
    """The literal: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC = tr(K H L H) / (n - 1)^2, with explicit matrices."""
    first, second = (cka.kernel(layer, form) for layer, form in zip(layers, forms, strict=True))
    assert cka.alignment(first, second) == pytest.approx(0.1671587448478071, rel=1e-12)


def test_a_rotation_and_a_factor_change_nothing(layers: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = layers
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    assert cka.similarity(first, first) == pytest.approx(1.0)
    assert cka.similarity(1e-30 * rotation @ first + 1.0e-30, first) == pytest.approx(1.0)
    assert cka.similarity(rotation @ first, second) == pytest.approx(cka.similarity(first, second))


def test_two_neurons_by_hand() -> None:
    """X = (1, -1, 0), Y = (1, 0, -1): X Y^T = 1 and X X^T = Y Y^T = 2, so that CKA = 1 / 4, the squared correlation."""
    assert cka.similarity(np.array([[1.0, -1, 0]]), np.array([[6.0, 5, 4]])) == pytest.approx(0.25)


def test_constant_neurons_more_neurons_than_images_and_nan(layers: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = layers
    padded = np.vstack([first, np.full((300, 200), 0.1)])
    assert cka.kernel(padded).by_images
    assert cka.similarity(padded, second) == pytest.approx(cka.similarity(first, second))
    assert cka.similarity(np.full((3, 200), 0.1), second) is None
    assert cka.similarity(np.full((3, 200), np.inf), second) is None
