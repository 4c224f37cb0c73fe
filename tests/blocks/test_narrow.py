"""Channel pruning: the choice of channels is the exact greedy one, and the refitted kernel is the optimum for it."""

import itertools
import pickle
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import elimination, initialisation
from pbd.blocks.narrow import NARROWED, Narrow
from pbd.blocks.selection import SELECTED
from pbd.networks.cost import count_macs, count_params
from tests.blocks.test_factored import initialised, layer_of
from tests.blocks.test_initialisation import smooth_images

GEOMETRIES: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid", "use_bias": False},
    {"padding": "same", "strides": 2, "kernel_size": (3, 2)},
    {"padding": "same", "dilation_rate": 2, "use_bias": False, "activation": "relu"},
]


def problem(channels: int = 6, positions: int = 4, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel, and the second moment of correlated patches."""
    generator = np.random.default_rng(channels)
    size = channels * positions
    patches = generator.normal(size=(4 * size, size)) @ generator.normal(size=(size, size))
    return generator.normal(size=(channels, positions, outputs)), patches.T @ patches / len(patches)


def error_of(kernel: np.ndarray, moment: np.ndarray, kept: Any) -> float:
    """Return the regularised error of the refitted kernel of a selection."""
    kept = np.array(kept)
    left = kernel.copy()
    left[kept] -= elimination.refit(kernel, moment, kept)
    left = left.reshape(len(moment), -1)
    ridged = moment + elimination.RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    return float(np.trace(left.T @ ridged @ left))


def greedy(kernel: np.ndarray, moment: np.ndarray, count: int) -> list[int]:
    """Return the channels that are left by brute force: each step tries every removal."""
    kept = list(range(len(kernel)))
    while len(kept) > count:
        kept = list(min(itertools.combinations(kept, len(kept) - 1), key=lambda each: error_of(kernel, moment, each)))
    return kept


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("channels", [4, 7])
def test_each_removal_is_the_best_one(channels: int, positions: int) -> None:
    kernel, moment = problem(channels, positions)
    for count in range(1, channels + 1):
        assert elimination.by_error(kernel, moment, count).tolist() == greedy(kernel, moment, count)


def test_several_at_once_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, moment = problem(24)
    one_by_one = error_of(kernel, moment, elimination.by_error(kernel, moment, 12))
    monkeypatch.setattr(elimination, "ONE_BY_ONE", 7)
    kept = elimination.by_error(kernel, moment, 12)
    assert len(set(kept.tolist())) == 12
    assert error_of(kernel, moment, kept) < 1.1 * one_by_one


def test_inputs_that_are_always_zero_are_removed_first() -> None:
    kernel, moment = problem(6, 4)
    moment[4:8] = moment[:, 4:8] = moment[20:] = moment[:, 20:] = 0.0
    assert elimination.by_error(kernel, moment, 4).tolist() == [0, 2, 3, 4]
    assert len(elimination.by_error(kernel, 0.0 * moment, 2)) == 2


def test_the_choice_is_never_worse_than_the_channels_of_the_largest_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, moment = problem(8)
    smallest = np.sort(np.argsort(np.square(kernel).sum(axis=(1, 2)))[:4])
    monkeypatch.setattr(elimination, "by_error", lambda *_: smallest)
    largest = elimination.by_norm(kernel, 4)
    assert error_of(kernel, moment, smallest) > error_of(kernel, moment, largest)
    kept, weights = elimination.best(kernel, moment, 4)
    np.testing.assert_array_equal(kept, largest)
    np.testing.assert_array_equal(weights, elimination.refit(kernel, moment, largest))
    assert elimination.refit_error(kernel, moment, kept, weights) == pytest.approx(error_of(kernel, moment, largest))


@pytest.mark.parametrize("settings", GEOMETRIES, ids=str)
def test_no_other_weights_of_the_chosen_channels_are_better(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are a minimum on the images of the fit: small steps of kernel and bias only raise the error."""
    monkeypatch.setattr(elimination, "RIDGE", 1e-9)
    monkeypatch.setattr(initialisation, "PATCHES_PER_VALUE", 10**6)  # all patches
    convolution, layer = layer_of(side=7, channels=8, **settings)
    images = smooth_images(60, 7, 8, seed=1)
    block = initialised(Narrow(50), convolution, replace(layer, activation="linear"), images)
    convolution.activation = keras.activations.linear
    target = keras.ops.convert_to_numpy(convolution(images))
    narrowed = block.get_layer(f"layer{NARROWED}")
    best, generator = narrowed.get_weights(), np.random.default_rng(0)

    def error() -> float:
        return float(np.mean((keras.ops.convert_to_numpy(block(images)) - target).astype(np.float64) ** 2))

    least = error()
    for _ in range(10):
        narrowed.set_weights([each + 0.01 * generator.normal(size=each.shape) for each in best])
        assert error() > least


@pytest.mark.parametrize("settings", GEOMETRIES, ids=str)
def test_fitted_weights_are_better_than_the_largest_ones_on_unseen_images(settings: dict[str, Any]) -> None:
    convolution, layer = layer_of(channels=16, **settings)
    images = smooth_images(200, 11, 16, seed=1)
    target = keras.ops.convert_to_numpy(convolution(images[150:]))
    errors = []
    for seen in (None, images[:150]):
        block = initialised(Narrow(50), convolution, layer, seen)
        errors.append(np.mean((keras.ops.convert_to_numpy(block(images[150:])) - target) ** 2) / np.var(target))
    assert errors[1] < 0.8 * errors[0]


def test_without_statistics_the_weights_are_those_of_the_largest_slices() -> None:
    convolution, layer = layer_of(channels=8, padding="same")
    kernel, bias = convolution.get_weights()
    kernel[:, :, [0, 3, 4, 6]] *= 0.1
    convolution.set_weights([kernel, bias])
    block = initialised(Narrow(50), convolution, layer, None)
    assert block.get_layer(f"layer{SELECTED}").get_weights()[0].tolist() == [1, 2, 5, 7]
    np.testing.assert_allclose(block.get_layer(f"layer{NARROWED}").get_weights()[0], kernel[:, :, [1, 2, 5, 7]])


@pytest.mark.parametrize(("percent", "read"), [(5, 1), (33, 5), (50, 8), (95, 15)])
def test_the_cost_is_that_of_the_channels_that_are_read(percent: int, read: int) -> None:
    layer = layer_of(channels=16, padding="same")[1]
    design = blocks.get(f"narrow_r{percent}")
    block = blocks.build_block(design, layer, seed=0)
    assert design.channels_read(layer) == read
    assert count_macs(block) == layer.macs * read // 16
    assert count_params(block) == 9 * read * 10 + 10
    assert blocks.get("tucker2_r50").channels_read(layer) == 16


def test_names_and_layers_that_do_not_suit() -> None:
    assert pickle.loads(pickle.dumps(blocks.get("narrow_r41"))) == Narrow(41)
    design, layer = blocks.get("narrow_r50"), layer_of(channels=16)[1]
    assert design.applies_to(layer) is None
    assert "channels_first" in str(design.applies_to(replace(layer, data_format="channels_first")))
    assert "groups: 2" in str(design.applies_to(layer_of(groups=2)[1]))
    assert "input channels: 3" in str(design.applies_to(layer_of(channels=3)[1]))
    assert "no layer before it" in str(design.unprofitable(layer))
    assert design.unprofitable(replace(layer, producer="before")) is None


def test_a_large_moment_of_channels_that_are_much_alike_is_inverted_exactly() -> None:
    """As of VGG16's, with 4,608 values: an inverse by halves lost 14 digits there."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(1024, 64)) @ random.normal(size=(64, 1024)) + 0.01 * random.normal(size=(1024, 1024))
    matrix = rows @ rows.T / 1024 + 1e-4 * np.eye(1024)
    inverse = elimination._inverse(matrix)
    np.testing.assert_allclose(inverse @ matrix, np.eye(1024), atol=1e-7)
    np.testing.assert_array_equal(inverse, inverse.T)
    with pytest.raises(np.linalg.LinAlgError):
        elimination._inverse(-np.eye(3))
