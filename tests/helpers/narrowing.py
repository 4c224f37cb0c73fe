"""Networks with fewer channels, for tests."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from pbd.networks import channels, graph

TOLERANCE = 1e-4
"""Largest difference of outputs that compute the same, relative to the largest output."""


def randomise(model: keras.Model) -> None:
    """Give each channel values of its own: initial statistics, scales and slopes are all alike."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if not any("kernel" in weight.name for weight in layer.weights):
            layer.set_weights([generator.uniform(0.6, 1.4, weight.shape) for weight in layer.weights])


def half(model: keras.Model) -> dict[str, list[int]]:
    """Return half of the channels, drawn at random, of each group from which channels can be removed."""
    generator = np.random.default_rng(1)
    return {
        group.name: sorted(generator.permutation(group.size)[: group.size // 2].tolist())
        for group in channels.find_groups(model)
        if not group.fixed
    }


def with_narrow_inputs(model: keras.Model, kept: Mapping[str, list[int]]) -> keras.Model:
    """Return a copy of the model in which convolutions read some of their input channels only,.

    Args:
        model: flat and functional.
        kept: the input channels by the name of the layer.
    """

    def builder(layer: keras.layers.Conv2D, indices: list[int]) -> Callable[[Any], Any]:
        def build(x: Any) -> Any:
            narrow = type(layer).from_config(layer.get_config())
            y = narrow(keras.ops.take(x, indices, axis=-1))
            kernel, *bias = layer.get_weights()
            narrow.set_weights([kernel[:, :, indices], *bias])
            return y

        return build

    return graph.swap(model, {name: builder(model.get_layer(name), indices) for name, indices in kept.items()})


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the outputs in inference mode."""
    return keras.ops.convert_to_numpy(model(images, training=False))


def difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected output."""
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())
