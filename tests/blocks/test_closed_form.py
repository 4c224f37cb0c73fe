"""Closed-form initial weights are at a minimum of the error of the layer's output, below that of the kernel alone."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import decoupling, initialisation, low_rank
from pbd.blocks.design import LayerKernel
from pbd.blocks.elimination import ridged
from pbd.blocks.initialisation import Statistics
from pbd.records import Layer
from tests.blocks.test_factored import layer_of
from tests.blocks.test_initialisation import PAPER, smooth_images

WITHOUT_MINIMUM = {*PAPER, "drop"}
"""Between the separable convolutions of the paper's designs there are batch normalisations and ReLUs, so their initial
weights are those of a decoupled kernel and no minimum; `drop` has no weights."""
CLOSED_FORM = sorted({design.name for design in blocks.designs()} - WITHOUT_MINIMUM - {"merge"})
SETTINGS: list[dict[str, Any]] = [{}, {"use_bias": False, "strides": 2}, {"dilation_rate": 2}]
SWEEPS = 400
"""The alternating minimisations usually end earlier, near the minimum."""


@pytest.fixture
def to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let alternating minimisations go on to their minimum."""
    for module in (decoupling, low_rank):
        monkeypatch.setattr(module, "FLAT", 0.0)
        monkeypatch.setattr(module, "fit", functools.partial(module.fit, sweeps=SWEEPS))


def convolution_of(block: keras.Model, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel, (values, outputs), and the bias of the convolution that a block computes."""
    channels, (height, width), rates = layer.input_shape[-1], layer.kernel_size, layer.dilation_rate
    field = [(size - 1) * rate + 1 for size, rate in zip((height, width), rates, strict=True)]
    patches = np.zeros((channels, height, width, *field, channels))
    for channel, row, column in np.ndindex(channels, height, width):
        patches[channel, row, column, row * rates[0], column * rates[1], channel] = 1.0
    small = keras.models.clone_model(block, input_tensors=keras.Input((*field, channels), dtype="float64"))
    small.set_weights(block.get_weights())
    flat = patches.reshape(-1, *field, channels)
    outputs, bias = (keras.ops.convert_to_numpy(small(each))[:, 0, 0] for each in (flat, np.zeros_like(flat[:1])))
    return outputs - bias, bias[0]


def error_of(block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics) -> float:
    """Return the mean squared error of the output, with the ridge of the initialisation."""
    computed, bias = convolution_of(block, layer)
    residual = kernel.dense.reshape(computed.shape) - computed
    if not layer.use_bias:
        return float(np.sum(residual * (ridged(statistics.moment) @ residual)))
    mean_error = statistics.mean @ residual + kernel.bias - bias
    return float(np.sum(residual * (ridged(statistics.covariance) @ residual)) + np.sum(mean_error**2))


def check_that_steps_raise(error: Callable[[], float], block: keras.Model) -> None:
    """Check that no small step of the weights, random or along them, lowers the error; indices of channels stay."""
    generator, weights, lowest = np.random.default_rng(0), block.get_weights(), error()
    random = [[np.abs(each).mean() * generator.normal(size=each.shape) for each in weights] for _ in range(3)]
    for size, steps in itertools.product((1e-2, -1e-2, 1e-3, -1e-3), [*random, weights]):
        moved = [
            each + size * step if each.dtype.kind == "f" else each for each, step in zip(weights, steps, strict=True)
        ]
        block.set_weights(moved)
        assert error() > lowest - 1e-6 * abs(lowest)


def fitted(name: str, settings: dict[str, Any]) -> tuple[keras.Model, Callable[[keras.Model], float], keras.Model]:
    """Return a block with fitted weights, its error as a function of the block, and one with those of the kernel."""
    convolution, described = layer_of(side=9, channels=8, filters=8, padding="valid", **settings)
    layer, design = replace(described, dtype="float64"), blocks.get(name)
    assert design.applies_to(layer) is None
    kernel, statistics = initialisation.layer_kernel(convolution), Statistics.empty(layer, seed=0)
    statistics.add_inputs(smooth_images(100, 9, 8, seed=1))
    block, plain = (blocks.build_block(design, layer, seed=0) for _ in range(2))
    design.initialise(plain, layer, kernel, None)
    design.initialise(block, layer, kernel, statistics)
    return block, lambda each: error_of(each, layer, kernel, statistics), plain


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_the_kernel_alone_is_no_better(name: str, settings: dict[str, Any]) -> None:
    """That is the truncated SVD or HOSVD, the channels of the largest norm, or the layer's weights in the groups."""
    block, error, plain = fitted(name, settings)
    assert 0.0 < error(block) < error(plain)


@pytest.mark.usefixtures("to_the_end")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_no_small_step_lowers_the_error(name: str, settings: dict[str, Any]) -> None:
    block, error, _ = fitted(name, settings)
    check_that_steps_raise(lambda: error(block), block)


def test_no_small_step_of_a_merged_block_lowers_the_error_and_a_constant_is_no_better() -> None:
    """`merge` has no kernel to start from: it is regressed on the outputs, here those of a layer with a ReLU."""
    convolution, described = layer_of(side=9, channels=8, filters=8, padding="valid", activation="relu")
    layer, design = replace(described, dtype="float64", activation="linear"), blocks.get("merge")
    statistics, images = Statistics.empty(layer, seed=0), smooth_images(100, 9, 8, seed=1)
    statistics.add_inputs(images, keras.ops.convert_to_numpy(convolution(images)))
    block = blocks.build_block(design, layer, seed=0)
    design.initialise(block, layer, initialisation.layer_kernel(convolution), statistics)

    def error() -> float:
        """Return the mean squared error with its ridge, less that of the best constant."""
        computed, bias = convolution_of(block, layer)
        mean_error = statistics.mean @ computed + bias - statistics.paired_target_mean
        fitted = computed * (ridged(statistics.covariance) @ computed - 2 * statistics.cross_covariance)
        return float(np.sum(fitted) + np.sum(mean_error**2))

    lowest = error()
    assert lowest < 0.0
    check_that_steps_raise(error, block)
