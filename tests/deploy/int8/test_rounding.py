"""Rounded kernels, and biases that correct them in the mean."""

import keras
import numpy as np
import pytest

from pbd.deploy.int8 import rounding
from pbd.deploy.runtimes import base

LIMIT = 7
"""Few steps, so that the errors are large."""
PIXELS = np.random.default_rng(0).uniform(0, 1, (80, 6, 6, 4)).astype(np.float32)
layers = keras.layers


def network() -> keras.Model:
    """A depthwise layer without a bias, a pointwise convolution, and a dense layer, on inputs with a mean of 0.5."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(PIXELS.shape[1:])
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(inputs)
    x = layers.Conv2D(8, 1, activation="relu", name="pointwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="classes")(layers.Flatten()(x)))


def outputs_before_activation(model: keras.Model) -> np.ndarray:
    """Return the means of the pointwise convolution's outputs."""
    layer = model.get_layer("pointwise")
    x = keras.Model(model.inputs, layer.input).predict(PIXELS, verbose=0)
    kernel, bias = layer.get_weights()
    return (x @ kernel[0, 0] + bias).mean(axis=(0, 1, 2))


@pytest.fixture(scope="module")
def rounded() -> keras.Model:
    return rounding.with_rounded_kernels(network(), PIXELS, LIMIT)


def test_the_mean_of_the_outputs_is_kept_behind_a_layer_without_a_bias(rounded: keras.Model) -> None:
    exact = network()
    uncorrected = rounding.with_rounded_kernels(exact, PIXELS, LIMIT)
    uncorrected.get_layer("pointwise").bias.assign(exact.get_layer("pointwise").bias)
    expected = outputs_before_activation(exact)
    assert np.abs(outputs_before_activation(uncorrected) - expected).max() > 0.01
    assert np.allclose(outputs_before_activation(rounded), expected, atol=1e-5)


def test_kernels_have_one_scale_for_each_output_channel(rounded: keras.Model) -> None:
    for name, axes in {"depthwise": (2, 3), "pointwise": (3,), "classes": (1,)}.items():
        kernel = keras.ops.convert_to_numpy(rounded.get_layer(name).kernel)
        integers = kernel / base.kernel_scales(kernel, axes, LIMIT)
        assert np.allclose(integers, np.rint(integers), atol=1e-4), name
        assert np.allclose(np.abs(integers).max(axis=tuple({*range(kernel.ndim)} - {*axes})), LIMIT), name


def test_the_network_and_layers_in_float32_are_left_as_they_are() -> None:
    exact = network()
    rounded = rounding.with_rounded_kernels(exact, PIXELS, LIMIT, kept_float=("pointwise",))
    for weight, expected in zip(exact.get_weights(), network().get_weights(), strict=True):
        assert np.array_equal(weight, expected)
    assert np.array_equal(rounded.get_layer("pointwise").kernel, exact.get_layer("pointwise").kernel)
    assert not np.array_equal(rounded.get_layer("classes").kernel, exact.get_layer("classes").kernel)


def test_kernels_that_are_trained_are_not_rounded() -> None:
    exact = network()
    corrected = rounding.with_corrected_biases(exact, PIXELS, LIMIT)
    assert np.array_equal(corrected.get_layer("classes").kernel, exact.get_layer("classes").kernel)
    assert not np.array_equal(corrected.get_layer("classes").bias, exact.get_layer("classes").bias)
