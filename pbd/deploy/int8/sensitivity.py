"""Sensitivity of each layer to 8-bit integers: the signal-to-noise ratio of the logits if it alone is quantised."""

from typing import Any

import keras
import numpy as np

from pbd.networks import graph, heads
from pbd.networks.keras_internals import walk

_WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)
_MOST_DB = 200.0
"""The ratio for layers that lose nothing."""


def kernels(layer: keras.Layer) -> list[np.ndarray]:
    """Return the kernels of a layer: all its weights but the bias."""
    return [weight for weight in layer.get_weights() if weight.ndim > 1]


def weighted_layers(network: keras.Model) -> list[keras.Layer]:
    """Return the layers whose kernels runtimes quantise."""
    return [layer for layer in network.layers if isinstance(layer, _WEIGHTED)]


def signal_to_noise(network: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Return for each layer the signal-to-noise ratio of the logits, in dB, if only this layer is quantised.

    Its kernels have 8 bits per output channel, its input and its output 8 bits with one scale.

    Args:
        network: as it is exported (see `portable`).
        images: (n, height, width, channels) float32.
    """
    logits = heads.remove(network)
    exact = _run(logits, images, None)
    return {layer.name: _decibels(exact, _run(logits, images, layer)) for layer in weighted_layers(network)}


def _run(network: keras.Model, images: np.ndarray, quantised: keras.Layer | None) -> np.ndarray:
    """Return the outputs of a network in which one layer is quantised."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = graph.in_mode(operation, False, kwargs)
        if operation is not quantised:
            return operation(*args, **kwargs)
        return _rounded(_with_rounded_kernels(operation)(_rounded(args[0]), *args[1:], **kwargs))

    outputs = keras.tree.flatten(walk(network, keras.ops.convert_to_tensor(images), call))[0]
    return keras.ops.convert_to_numpy(outputs).astype(np.float64)


def _with_rounded_kernels(layer: keras.Layer) -> keras.Layer:
    """Return a copy of a layer whose kernels have 8 bits per output channel."""
    copy = type(layer).from_config(layer.get_config())
    copy.build(layer.input.shape)
    copy.set_weights([round_kernel(weight) if weight.ndim > 1 else weight for weight in layer.get_weights()])
    return copy


def round_kernel(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel rounded to 8 bits, with one scale for each output channel."""
    depthwise = kernel.ndim == 4 and kernel.shape[2] > 1 and kernel.shape[3] == 1
    axes = (0, 1, 3) if depthwise else tuple(range(kernel.ndim - 1))
    scale = np.maximum(np.abs(kernel).max(axis=axes, keepdims=True), np.finfo(np.float32).tiny) / 127
    return (np.round(kernel / scale) * scale).astype(kernel.dtype)


def _rounded(tensor: Any) -> Any:
    """Return a tensor rounded to the 256 values between its extremes and 0."""
    low, high = keras.ops.minimum(keras.ops.min(tensor), 0), keras.ops.maximum(keras.ops.max(tensor), 0)
    scale = keras.ops.maximum(high - low, 1e-30) / 255
    return keras.ops.round((tensor - low) / scale) * scale + low


def _decibels(exact: np.ndarray, noisy: np.ndarray) -> float:
    noise = float(np.square(noisy - exact).sum())
    signal = float(np.square(exact).sum())
    return min(_MOST_DB, 10 * np.log10(signal / noise)) if noise and signal else _MOST_DB
