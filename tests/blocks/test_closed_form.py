"""Closed-form initial weights are at a minimum of the error of the layer's output, below that of the kernel alone."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from tests.blocks.test_blocks import first_and_last
from tests.blocks.test_factored import layer_of
from tests.blocks.test_initialisation import PAPER, smooth_images

WITHOUT_MINIMUM = {*PAPER, "drop"}
"""Between the separable convolutions of the paper's designs there are batch normalisations and ReLUs, so their initial
weights are those of a decoupled kernel and no minimum; `drop` has no weights."""
CLOSED_FORM = first_and_last(sorted({design.name for design in blocks.designs()} - WITHOUT_MINIMUM - {"merge"}))
SETTINGS: list[dict[str, Any]] = [{}, {"use_bias": False, "strides": 2}, {"dilation_rate": 2}]
SWEEPS = 400
"""The alternating minimisations usually end earlier, near the minimum."""


@pytest.fixture
def to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let alternating minimisations go on to their minimum."""
    for module in (decoupling, low_rank):
        monkeypatch.setattr(module, "FLAT", 0.0)
        monkeypatch.setattr(module, "fit", functools.partial(module.fit, sweeps=SWEEPS))


class Convolution:
    """The convolution that a block computes, as a function of the block's weights.

    Args:
        block: in place of the layer.
        layer: with a kernel of the same size, strides and dilation.
    """

    def __init__(self, block: keras.Model, layer: Layer) -> None:
        channels, (height, width), rates = layer.input_shape[-1], layer.kernel_size, layer.dilation_rate
        field = [(size - 1) * rate + 1 for size, rate in zip((height, width), rates, strict=True)]
        patches = np.zeros((channels, height, width, *field, channels))
        for channel, row, column in np.ndindex(channels, height, width):
            patches[channel, row, column, row * rates[0], column * rates[1], channel] = 1.0
        self._patches = np.concatenate([patches.reshape(-1, *field, channels), np.zeros((1, *field, channels))])
        self.block = keras.models.clone_model(block, input_tensors=keras.Input((*field, channels), dtype="float64"))
        self.block.set_weights(block.get_weights())

    def kernel_and_bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel, (values, outputs), and the bias."""
        outputs = keras.ops.convert_to_numpy(self.block(self._patches))[:, 0, 0]
        return outputs[:-1] - outputs[-1], outputs[-1]


@dataclass(frozen=True)
class Problem:
    """A layer to replace: its record, kernel and statistics."""

    layer: Layer
    kernel: LayerKernel
    statistics: Statistics

    def error_of(self, convolution: Convolution) -> float:
        """Return the mean squared error of the output, with the ridge of the initialisation."""
        computed, bias = convolution.kernel_and_bias()
        residual = self.kernel.dense.reshape(computed.shape) - computed
        if not self.layer.use_bias:
            return float(np.sum(residual * (self.ridged_moment @ residual)))
        mean_error = self.statistics.mean @ residual + self.kernel.bias - bias
        return float(np.sum(residual * (self.ridged_moment @ residual)) + np.sum(mean_error**2))

    @functools.cached_property
    def ridged_moment(self) -> np.ndarray:
        return ridged(self.statistics.covariance if self.layer.use_bias else self.statistics.moment)

    def initialised(self, name: str, fitted: bool = True) -> Convolution:
        """Return the convolution of a block with fitted weights, or with those of the kernel."""
        design = blocks.get(name)
        assert design.applies_to(self.layer) is None
        block = blocks.build_block(design, self.layer, seed=0)
        design.initialise(block, self.layer, self.kernel, self.statistics if fitted else None)
        return Convolution(block, self.layer)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def problem(request: pytest.FixtureRequest) -> Problem:
    convolution, described = layer_of(side=9, channels=8, filters=8, padding="valid", **request.param)
    layer = replace(described, dtype="float64")
    statistics = Statistics.empty(layer, seed=0)
    statistics.add_inputs(smooth_images(100, 9, 8, seed=1))
    return Problem(layer, initialisation.layer_kernel(convolution), statistics)


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


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_the_kernel_alone_is_no_better(name: str, problem: Problem) -> None:
    """That is the truncated SVD or HOSVD, the channels of the largest norm, or the layer's weights in the groups."""
    fitted, plain = (problem.error_of(problem.initialised(name, fitted)) for fitted in (True, False))
    assert 0.0 < fitted < plain


@pytest.mark.usefixtures("to_the_end")
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_no_small_step_lowers_the_error(name: str, problem: Problem) -> None:
    fitted = problem.initialised(name)
    check_that_steps_raise(lambda: problem.error_of(fitted), fitted.block)


def test_no_small_step_of_a_merged_block_lowers_the_error_and_a_constant_is_no_better() -> None:
    """`merge` has no kernel to start from: it is regressed on the outputs, here those of a layer with a ReLU."""
    convolution, described = layer_of(side=9, channels=8, filters=8, padding="valid", activation="relu")
    layer, design = replace(described, dtype="float64", activation="linear"), blocks.get("merge")
    statistics, images = Statistics.empty(layer, seed=0), smooth_images(100, 9, 8, seed=1)
    statistics.add_inputs(images, keras.ops.convert_to_numpy(convolution(images)))
    block = blocks.build_block(design, layer, seed=0)
    design.initialise(block, layer, initialisation.layer_kernel(convolution), statistics)
    merged = Convolution(block, layer)

    def error() -> float:
        """Return the mean squared error with its ridge, less that of the best constant."""
        computed, bias = merged.kernel_and_bias()
        mean_error = statistics.mean @ computed + bias - statistics.paired_target_mean
        fitted = computed * (ridged(statistics.covariance) @ computed - 2 * statistics.cross_covariance)
        return float(np.sum(fitted) + np.sum(mean_error**2))

    lowest = error()
    assert lowest < 0.0
    check_that_steps_raise(error, merged.block)
