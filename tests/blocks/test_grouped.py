"""Grouped convolutions: the kernel of the groups, their cost, and the layers that do not suit."""

import pickle
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import elimination
from pbd.blocks.grouped import GROUP, Grouped
from pbd.errors import UsageError
from pbd.networks.cost import count_macs, count_params
from tests.blocks.test_factored import initialised, layer_of
from tests.blocks.test_initialisation import smooth_images

SETTINGS: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid", "use_bias": False, "strides": 2, "filters": 4},
    {"padding": "same", "dilation_rate": 2, "kernel_size": (3, 2), "activation": "relu"},
]


def layer_with(**settings: Any) -> tuple[keras.layers.Conv2D, Any]:
    return layer_of(**{"side": 9, "channels": 8, "filters": 16} | settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_statistics_the_kernel_of_a_group_is_that_part_of_the_layer(settings: dict[str, Any]) -> None:
    convolution, layer = layer_with(**settings)
    block = initialised(Grouped(2), convolution, layer, None)
    whole, *bias = convolution.get_weights()
    half = layer.output_shape[-1] // 2
    for number, (inputs, outputs) in enumerate([(slice(4), slice(half)), (slice(4, 8), slice(half, 2 * half))], 1):
        weights = block.get_layer(f"layer{GROUP}{number}").get_weights()
        for one, other in zip(weights, [whole[:, :, inputs, outputs], *(each[outputs] for each in bias)], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_layer_whose_groups_are_independent_is_computed_exactly(
    settings: dict[str, Any], fitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "RIDGE", 1e-9)
    convolution, layer = layer_with(**settings)
    kernel, *bias = convolution.get_weights()
    half = layer.output_shape[-1] // 2
    kernel[:, :, 4:, :half] = kernel[:, :, :4, half:] = 0.0
    convolution.set_weights([kernel, *bias])
    images = smooth_images(60, 9, 8, seed=1)
    block = initialised(Grouped(2), convolution, layer, images if fitted else None)
    expected = keras.ops.convert_to_numpy(convolution(images))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(block(images)), expected, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("groups", [2, 4])
def test_fitted_weights_are_better_than_those_of_the_layer_on_unseen_images(
    groups: int, settings: dict[str, Any]
) -> None:
    convolution, layer = layer_with(**settings)
    images = smooth_images(200, 9, 8, seed=1)
    target = keras.ops.convert_to_numpy(convolution(images[150:]))
    errors = []
    for seen in (None, images[:150]):
        block = initialised(Grouped(groups), convolution, layer, seen)
        errors.append(np.mean((keras.ops.convert_to_numpy(block(images[150:])) - target) ** 2) / np.var(target))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_cost_is_that_of_the_layer_divided_by_the_groups(groups: int) -> None:
    layer = layer_with(padding="same")[1]
    block = blocks.build_block(Grouped(groups), layer, seed=0)
    assert count_macs(block) == layer.macs // groups
    assert count_params(block) == 9 * 8 * 16 // groups + 16


def test_a_grouped_block_can_be_trained() -> None:
    layer = layer_with(padding="same", activation="relu")[1]
    block = blocks.build_block(Grouped(4), layer, seed=0)
    block.compile("adam", "mse")
    images = smooth_images(8, 9, 8, seed=1)
    history = block.fit(images, np.ones((8, *layer.output_shape)), epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_names_and_layers_that_do_not_suit() -> None:
    assert pickle.loads(pickle.dumps(blocks.get("grouped_g32"))) == Grouped(32)
    with pytest.raises(UsageError, match="grouped_g2"):
        blocks.get("grouped_g1")
    design, layer = blocks.get("grouped_g4"), layer_of(channels=64, filters=128)[1]
    assert design.applies_to(layer) is None
    assert design.unprofitable(layer) is None
    assert "channels of a group: 8" in str(blocks.get("grouped_g8").unprofitable(layer))
    assert "channels_first" in str(design.applies_to(replace(layer, data_format="channels_first")))
    assert "groups: 2" in str(design.applies_to(layer_of(channels=8, filters=8, groups=2)[1]))
    assert "channels: 6 to 10; both" in str(design.applies_to(layer_of()[1]))
