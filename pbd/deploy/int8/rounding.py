"""Kernels rounded to 8 bits, and biases that correct what the rounding changes in the mean.

Inputs behind a ReLU are not negative, so that the errors of a rounded kernel do not cancel: they shift the mean of each
output channel. The shift is measured on images and subtracted from the bias (Nagel et al. 2019, arXiv:1906.04721).
"""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from pbd.deploy.runtimes import base
from pbd.networks import graph
from pbd.networks.keras_internals import walk

LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
"""Layers with rounded kernels; exact types only, since a subclass may compute something else."""
_BATCH = 64


def rounded_kernel(layer: keras.Layer, limit: int) -> np.ndarray:
    """Return the kernel of a layer rounded to integers of a scale for each output channel.

    Args:
        layer: a layer of a type in `LAYERS`, built.
        limit: the largest integer.
    """
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    # A depthwise kernel is (height, width, channels, multiplier): its output channels are the last two axes.
    outputs = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
    scales = base.kernel_scales(kernel, tuple(range(kernel.ndim))[-outputs:], limit)
    return (np.rint(kernel / scales) * scales).astype(kernel.dtype)


def with_rounded_kernels(
    network: keras.Model, images: np.ndarray, limit: int, kept_float: Collection[str] = ()
) -> keras.Model:
    """Return a copy of a network with rounded kernels and corrected biases; quantising it rounds no kernel further.

    Args:
        network: as `portable.portable` returns it.
        images: (n, height, width, channels) float32, as the network takes them.
        limit: the largest integer of the kernels.
        kept_float: names of layers whose kernels are not rounded.
    """
    copy = with_corrected_biases(network, images, limit, kept_float)
    for layer in copy.layers:
        if type(layer) in LAYERS and layer.name not in kept_float:
            layer.kernel.assign(rounded_kernel(layer, limit))
    return copy


def with_corrected_biases(
    network: keras.Model, images: np.ndarray, limit: int, kept_float: Collection[str] = ()
) -> keras.Model:
    """Return a copy of a network with the biases that it needs once its kernels are rounded.

    Args:
        network: see `with_rounded_kernels`, as `images`, `limit` and `kept_float`.
        images: see `network`.
        limit: see `network`.
        kept_float: see `network`.
    """
    copy = graph.flatten(network)
    errors = {
        layer.name: _Errors(layer, limit if layer.name not in kept_float else None)
        for layer in copy.layers
        if type(layer) in LAYERS
    }
    differences: dict[int, tuple[Any, Any]] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        output = operation(*args, **graph.in_mode(operation, False, kwargs))
        if operation.name in errors:
            _, upstream = differences.get(id(args[0]), (None, None))
            difference = errors[operation.name].of(args[0], upstream)
            if difference is not None:
                differences[id(output)] = output, difference  # holds the output, so that its id stays its own
        return output

    for batch in np.split(images, range(_BATCH, len(images), _BATCH)):
        walk(copy, keras.ops.convert_to_tensor(batch), call)
        differences.clear()
    for error in errors.values():
        error.correct()
    return copy


class _Errors:
    """What rounding the kernel of a layer changes in its outputs, before the activation.

    Args:
        layer: a layer of a type in `LAYERS`, built.
        limit: the largest integer of the kernel; `None`: it is not rounded.
    """

    def __init__(self, layer: keras.Layer, limit: int | None) -> None:
        self._layer = layer
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        self._rounded = kernel if limit is None else rounded_kernel(layer, limit)
        self._error = self._rounded - kernel
        self._product = type(layer).from_config({**layer.get_config(), "use_bias": False, "activation": "linear"})
        self._product.build(layer.get_build_config()["input_shape"])
        self._sum: Any = 0.0
        self._count = 0

    def of(self, x: Any, upstream: Any) -> Any:
        """Count the change of the outputs for an input; return it if no bias can correct it in the mean.

        Args:
            x: the input.
            upstream: what rounding changes in the input; `None` for nothing.
        """
        difference = self._multiplied(x, self._error)
        if upstream is not None:
            difference += self._multiplied(upstream, self._rounded)
        if not self._layer.use_bias:
            is_linear = getattr(self._layer, "activation", None) is keras.activations.linear
            return difference if is_linear else None
        axis = 1 if getattr(self._layer, "data_format", None) == "channels_first" else -1
        values = np.moveaxis(keras.ops.convert_to_numpy(difference), axis, -1)
        values = values.reshape(-1, values.shape[-1])
        self._sum = self._sum + values.sum(axis=0, dtype=np.float64)
        self._count += len(values)
        return None

    def correct(self) -> None:
        """Subtract the mean change from the bias."""
        if self._count:
            bias = keras.ops.convert_to_numpy(self._layer.bias)
            self._layer.bias.assign((bias - self._sum / self._count).astype(bias.dtype))

    def _multiplied(self, x: Any, kernel: np.ndarray) -> Any:
        self._product.kernel.assign(kernel)
        return self._product(x)
