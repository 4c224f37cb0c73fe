"""Activations of which LiteRT's usual operation is slow in 8-bit integers, written with others.

LiteRT has no fast 8-bit kernel of `HARD_SWISH`, and none at all of `MINIMUM`, the ceiling of a `ReLU`: networks of them
were slower than in float32 (docs/measurements/2026-11-int8.md).
"""

import functools
import math
from typing import Any

import keras

from pbd.networks import graph

_ACTIVATED = (
    keras.layers.Activation,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
"""Layers whose activation is an attribute."""


def for_int8(network: keras.Model) -> keras.Model:
    """Return a network that computes the same with activations that are fast in 8-bit integers.

    Args:
        network: flat and functional; returned itself if it has no other activations. What is returned cannot be saved.
    """
    ceilings = {
        layer.name: keras.layers.Activation(
            functools.partial(_clipped, ceiling=layer.max_value), dtype="float32", name=layer.name
        )
        for layer in network.layers
        if type(layer) is keras.layers.ReLU and _has_other_ceiling(layer)
    }
    hard = [
        layer.name
        for layer in network.layers
        if type(layer) in _ACTIVATED and layer.activation is keras.activations.hard_silu
    ]
    if not ceilings and not hard:
        return network
    copy = graph.swap(network, ceilings)
    for name in hard:
        copy.get_layer(name).activation = _hard_silu
    return copy


def _has_other_ceiling(layer: keras.layers.ReLU) -> bool:
    """Return whether a ReLU has a ceiling that is not 6, and neither a slope below 0 nor a threshold."""
    ceiling = layer.max_value
    return bool(ceiling and ceiling != 6 and math.isfinite(ceiling)) and not (layer.negative_slope or layer.threshold)


def _clipped(x: Any, ceiling: float) -> Any:
    """Return x between 0 and the ceiling; the converter makes the factors a part of the kernels around."""
    return keras.ops.relu6(x * (6 / ceiling)) * (ceiling / 6)


def _hard_silu(x: Any) -> Any:
    """Return x relu6(x + 3) / 6, in an order that the converter does not take for `HARD_SWISH`."""
    return (x * (1 / 6)) * keras.ops.relu6(x + 3)
