"""SVCCA equals the reference implementation on fixed tensors, and its invariances hold.

The literals come from `cca_core.get_cca_similarity` of google/svcca, commit 1f3fbf1, in NumPy 2.4.6, on the tensors
that the tests draw: `cca_coef1` and its mean. For 99% of the variance, its input were the singular directions times
their values, as in the tutorials of that repository; for feature maps it was called for each frequency.
"""

import numpy as np
import pytest

from pbd.analysis import svcca

pytestmark = pytest.mark.fast


@pytest.fixture
def layers() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    first, noise = draws.standard_normal((5, 200)), draws.standard_normal((4, 200))
    second = draws.standard_normal((4, 5)) @ first + 2 * noise
    first[3] *= 10
    return first, second


def maps(channels: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    first = draws.standard_normal((60, 4, 4, 3))
    second = first @ draws.standard_normal((3, 2)) + draws.standard_normal((60, 4, 4, 2))
    larger = draws.standard_normal((60, 6, 6, 2))
    larger[:, :4, :4] += first[..., :2]
    return first, second, larger


def test_all_directions_give_the_correlations_of_the_reference(layers: tuple[np.ndarray, np.ndarray]) -> None:
    values = svcca.correlations(*(svcca.directions(layer, 1.0) for layer in layers))
    expected = [0.877429197303697, 0.8427657983284671, 0.6274970580833394, 0.22838528793852889]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert svcca.similarity(*layers, 1.0) == pytest.approx(0.6440193354135081)


def test_99_percent_of_the_variance_gives_the_mean_of_the_reference(layers: tuple[np.ndarray, np.ndarray]) -> None:
    assert len(svcca.directions(layers[0])) == 4  # of 5 neurons: cumulative 0.965, 0.975, 0.985, 0.993, 1
    values = svcca.correlations(*map(svcca.directions, layers))
    expected = [0.8635861570467945, 0.6351669715845579, 0.4188234849508801, 0.227566756904604]
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    assert svcca.similarity(*layers) == pytest.approx(0.5362858426217091)


def test_feature_maps_of_one_size_are_compared_by_frequency() -> None:
    first, second, _ = maps()
    assert svcca.fourier_similarity(first, second, 1.0) == pytest.approx(0.860353373295372)
    averages = [layer.mean((1, 2)).T for layer in (first, second)]
    assert svcca.similarity(*averages, 1.0) == pytest.approx(0.8009626393110827)  # that of frequency 0


def test_of_two_sizes_the_frequencies_of_the_smaller_are_compared() -> None:
    first, _, larger = maps()
    assert svcca.fourier_similarity(first, larger, 1.0) == pytest.approx(0.3599479063533715)


def test_an_invertible_map_of_the_neurons_changes_nothing(layers: tuple[np.ndarray, np.ndarray]) -> None:
    first, _ = layers
    mapped = np.random.default_rng(1).standard_normal((5, 5)) @ first + 3.0
    assert svcca.similarity(first, mapped, 1.0) == pytest.approx(1.0)
    assert svcca.similarity(first, first) == pytest.approx(1.0)
    assert svcca.fourier_similarity(maps()[0], maps()[0]) == pytest.approx(1.0)


def test_constant_neurons_are_left_out(layers: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = layers
    padded = np.vstack([first, np.full((3, 200), 0.1), np.zeros((1, 200))])
    assert svcca.similarity(padded, second, 1.0) == pytest.approx(svcca.similarity(first, second, 1.0))
    assert svcca.similarity(np.full((3, 200), 0.1), second) is None
    assert svcca.fourier_similarity(np.full((60, 4, 4, 3), 0.1), maps()[1]) is None


def test_more_neurons_than_images_and_values_that_are_not_finite() -> None:
    draws = np.random.default_rng(0)
    wide = draws.standard_normal((50, 10)).astype(np.float32)
    assert svcca.directions(wide, 1.0).shape == (9, 10)  # one dimension is lost with the mean
    assert svcca.similarity(wide, wide) == pytest.approx(1.0)
    assert svcca.similarity(wide, np.full((2, 10), np.nan)) is None
