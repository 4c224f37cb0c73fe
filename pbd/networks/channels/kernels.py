"""The axes of weights that run along a layer's input channels and along its output channels."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from pbd.networks.channels.identities import Call

INPUT, OUTPUT = "input", "output"
_CONVOLUTION = {"kernel": {-2: INPUT, -1: OUTPUT}, "bias": {0: OUTPUT}}
_PER_CHANNEL = {0: INPUT}
AXES: Mapping[type, Mapping[str, Mapping[int, str]]] = {
    keras.layers.Conv2D: _CONVOLUTION,
    keras.layers.Dense: _CONVOLUTION,
    keras.layers.Conv2DTranspose: {"kernel": {-1: INPUT, -2: OUTPUT}, "bias": {0: OUTPUT}},
    keras.layers.SeparableConv2D: {
        "depthwise_kernel": {-2: INPUT},
        "pointwise_kernel": {-2: INPUT, -1: OUTPUT},
        "bias": {0: OUTPUT},
    },
    keras.layers.DepthwiseConv2D: {"kernel": {-2: INPUT}, "bias": {0: OUTPUT}},
    keras.layers.BatchNormalization: dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), _PER_CHANNEL),
}
"""The axes by type of layer, name of the weight and axis; a `PReLU` has slopes along any axes."""
WIDTH = {
    keras.layers.Conv2D: "filters",
    keras.layers.Conv2DTranspose: "filters",
    keras.layers.SeparableConv2D: "filters",
    keras.layers.Dense: "units",
}
"""The layers that compute each output channel from all input channels, and the setting that gives their width."""


def has_known_weights(operation: Any) -> bool:
    """Return whether an operation has the weights of its type and no others, such as those of a quantised layer."""
    names = ("alpha",) if type(operation) is keras.layers.PReLU else AXES.get(type(operation), ())
    return all(weight.name in names for weight in getattr(operation, "weights", ()))


def is_per_channel(call: Call) -> bool:
    """Return whether a call is of a layer that computes each channel alone, with weights for each."""
    layer = call.operation
    if type(layer) in WIDTH or type(layer) not in (*AXES, keras.layers.PReLU):
        return False
    return has_known_weights(layer) and all(_ends(call, weight) for weight in layer.weights)


def reads(call: Call) -> np.ndarray:
    """Return whether each output channel depends on each input channel, `(inputs, outputs)`: its weight is not zero.

    Args:
        call: a call of a layer whose type is in `WIDTH`.
    """
    nonzero = {weight.name: keras.ops.convert_to_numpy(weight) != 0 for weight in call.operation.weights}
    if type(call.operation) is not keras.layers.SeparableConv2D:
        ends = {end: axis for axis, end in AXES[type(call.operation)]["kernel"].items()}
        kernel = np.moveaxis(nonzero["kernel"], (ends[INPUT], ends[OUTPUT]), (0, 1))
        return kernel.reshape(*kernel.shape[:2], -1).any(axis=2)
    depthwise = nonzero["depthwise_kernel"].any(axis=(0, 1))  # (inputs, multiplier)
    pointwise = nonzero["pointwise_kernel"][0, 0].reshape(*depthwise.shape, -1)
    return (depthwise[:, :, None] & pointwise).any(axis=1)


def filters(layer: Any) -> np.ndarray:
    """Return the filters of a layer, (outputs, values): all weights of each output channel but the bias.

    Those of a separable convolution are the products of both kernels, which are what it computes with.

    Args:
        layer: a layer of a type in `WIDTH`.
    """
    if type(layer) is keras.layers.SeparableConv2D:
        depthwise = keras.ops.convert_to_numpy(layer.depthwise_kernel)
        pointwise = keras.ops.convert_to_numpy(layer.pointwise_kernel)
        both = depthwise.reshape(*depthwise.shape[:2], -1, 1) * pointwise
        return both.reshape(-1, both.shape[-1]).T
    (axis,) = (axis for axis, end in AXES[type(layer)]["kernel"].items() if end == OUTPUT)
    kernel = np.moveaxis(keras.ops.convert_to_numpy(layer.kernel), axis, 0)
    return kernel.reshape(len(kernel), -1)


def select(call: Call, kept: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return a layer's weights for some of its channels.

    Args:
        call: a call of a layer whose type is in `AXES`.
        kept: the positions of the channels that remain, by end.
    """
    weights = []
    for weight in call.operation.weights:
        values = keras.ops.convert_to_numpy(weight)
        for axis, end in _ends(call, weight).items():
            values = np.take(values, _entries(values.shape[axis], kept[end], _channels(call, end)), axis)
        weights.append(values)
    return weights


def silence(call: Call, kept: np.ndarray) -> list[np.ndarray]:
    """Return a layer's weights, with zeros for the input channels that are not kept.

    Args:
        call: a call of a layer whose type is in `WIDTH`.
        kept: the positions of the other input channels.
    """
    removed = np.setdiff1d(np.arange(len(call.input.ids)), kept)
    weights = []
    for weight in call.operation.weights:
        values = keras.ops.convert_to_numpy(weight).copy()
        for axis, end in _ends(call, weight).items():
            if end == INPUT:
                np.moveaxis(values, axis, 0)[_entries(values.shape[axis], removed, len(call.input.ids))] = 0
        weights.append(values)
    return weights


def _ends(call: Call, weight: Any) -> Mapping[int, str]:
    """Return which axes of a weight run along the input or the output channels."""
    if type(call.operation) is not keras.layers.PReLU:
        return AXES[type(call.operation)][weight.name]
    axis = call.input.axis - 1  # a slope has no batch
    return {axis: INPUT} if weight.shape[axis] > 1 else {}


def _channels(call: Call, end: str) -> int:
    return len((call.input if end == INPUT else call.outputs[0]).ids)


def _entries(size: int, positions: np.ndarray, channels: int) -> np.ndarray:
    """Return the entries of some channels along an axis with `size / channels` neighbouring entries a channel."""
    multiplier = size // channels
    return (positions[:, None] * multiplier + np.arange(multiplier)).ravel()
