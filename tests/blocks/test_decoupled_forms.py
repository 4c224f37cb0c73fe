"""The forms of decoupled blocks for 8-bit integers compute what the blocks compute."""

import collections
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.deploy import inference_form
from pbd.networks import graph
from tests.helpers.swapping import swap_all

SETTINGS: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid", "use_bias": False},
    {"padding": "same", "strides": 2, "activation": "tanh"},
    {"padding": "same", "dilation_rate": 2},
]


def student(channels: int, rank: int, *settings: dict[str, Any]) -> keras.Model:
    """Return a network of random weights; a decoupled block replaces each of its convolutions, side by side."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, channels))
    features = []
    for number, each in enumerate(settings):
        x = keras.layers.Conv2D(24, 3, name=f"conv{number}", **each)(inputs)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        features.append(keras.layers.GlobalAveragePooling2D()(x))
    outputs = keras.layers.Concatenate()(features) if len(features) > 1 else features[0]
    model = keras.Model(inputs, outputs)
    swapped = swap_all(graph.flatten(model), f"decoupled_r{rank}")
    draws = np.random.default_rng(1)
    swapped.set_weights([draws.uniform(0.2, 1.0, weight.shape).astype(np.float32) for weight in swapped.get_weights()])
    return swapped


def kinds(model: keras.Model) -> collections.Counter[str]:
    return collections.Counter(type(layer).__name__ for layer in model.layers)


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_outputs_are_the_same(channels: int, rank: int) -> None:
    model = student(channels, rank, *SETTINGS)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 9, 9, channels)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    outputs = np.asarray(inference_form.fold(model, int8=True)(images, training=False))
    assert expected.shape == (4, 24 * len(SETTINGS))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_narrow_blocks_become_dense_and_wide_ones_have_one_depthwise_layer() -> None:
    narrow = kinds(inference_form.fold(student(8, 2, {"padding": "same"}), int8=True))
    assert (narrow["Conv2D"], narrow["DepthwiseConv2D"], narrow["Concatenate"]) == (1, 0, 0)
    wide = kinds(inference_form.fold(student(64, 2, {"padding": "same"}), int8=True))
    assert (wide["Conv2D"], wide["DepthwiseConv2D"], wide["Concatenate"]) == (1, 1, 1)
    single = kinds(inference_form.fold(student(8, 1, {"padding": "same"}), int8=True))
    assert (single["Conv2D"], single["DepthwiseConv2D"]) == (1, 1)


def test_other_designs_have_one_form() -> None:
    model = student(8, 2, {})
    assert blocks.get("two_layer").for_int8(model) is model
