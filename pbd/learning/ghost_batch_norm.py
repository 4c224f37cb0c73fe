"""Ghost batch normalisation: normalise fixed parts of a batch by their own statistics, on any number of workers.

Hoffer et al. 2017 (arXiv:1705.08741). The size of a part depends on the batch size alone, never on the number of
workers: one worker computes all parts, several workers compute some each, and the result is the same. On ResNet20 the
loss of accuracy is within the noise (`docs/measurements`).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from pbd.collective import Collective, all_reduce_sums
from pbd.networks import augmentation, graph
from pbd.networks.keras_internals import walk
from pbd.system import devices

SMALLEST = 32
"""Minimum number of images in a part, the number per worker in Goyal et al. 2017 (arXiv:1706.02677)."""


def ghost_batch_size(batch_size: int) -> int:
    """Return the number of images in a part: the least divisor of the batch size that is at least `SMALLEST`."""
    return next((size for size in range(SMALLEST, batch_size) if batch_size % size == 0), batch_size)


def split_unit(model: keras.Model, batch_size: int, compares_images: bool = False) -> int:
    """Return the smallest slice, in images, into which workers may split a training batch.

    Without batch statistics it is 1, with ghost batch normalisation one part. Batches of a model that draws random
    numbers (dropout) or normalises another axis than the last cannot be split: the result would depend on the split.

    Args:
        model: Flat and functional.
        batch_size: Images per batch.
        compares_images: Whether a loss compares images, which it does within the parts of ghost batch normalisation.
    """
    layers = _trained(model)
    if layers != normalisations(model) or any(map(augmentation.is_random, model.layers)):
        return batch_size
    return ghost_batch_size(batch_size) if layers or compares_images else 1


def normalisations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the trainable batch normalisations of a flat model that normalise the last axis."""
    return [layer for layer in _trained(model) if layer.axis in (-1, len(layer.input.shape) - 1)]


def _trained(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]


def train(model: keras.Model, images: Any, size: int) -> Any:
    """Run a model in training mode with ghost batch normalisation; return its outputs.

    Args:
        model: Flat and functional.
        images: `(batch, height, width, channels)`; the batch is a multiple of `size`.
        size: Images that are normalised together.
    """
    ghost_layers = {id(layer) for layer in normalisations(model)}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in ghost_layers:
            return normalise(operation, args[0], size)
        return operation(*args, **graph.in_mode(operation, True, kwargs))

    return walk(model, images, call)


def normalise(layer: keras.layers.BatchNormalization, x: Any, size: int) -> Any:
    """Apply a layer in training mode to the parts of a batch; update its moving averages with their mean statistics.

    Args:
        layer: Normalises the last axis.
        x: `(batch, ..., channels)`.
        size: Images that are normalised together.
    """
    ops, channels = keras.ops, x.shape[-1]
    parts = ops.cast(x, layer.variable_dtype)
    parts = ops.reshape(parts, (-1, size * int(np.prod(x.shape[1:-1])), channels))
    mean = _mean(parts)
    # The variance is computed from centred values: E[x^2] - E[x]^2 cancels in float32 if the mean is large. The
    # gradient through the statistics is written out in `_standardise`.
    centred = parts - ops.stop_gradient(mean)
    variance = _mean(ops.square(centred))
    for average, statistic in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        average.assign(layer.momentum * average + (1.0 - layer.momentum) * ops.mean(statistic, axis=(0, 1)))
    gamma = ops.copy(layer.gamma) if layer.scale else ops.ones((channels,), parts.dtype)
    beta = ops.copy(layer.beta) if layer.center else ops.zeros((channels,), parts.dtype)
    inverse_deviation = ops.stop_gradient(ops.rsqrt(variance + layer.epsilon))
    outputs = _standardise(centred, gamma, beta, inverse_deviation)
    return ops.cast(ops.reshape(outputs, (-1, *x.shape[1:])), x.dtype)


def _mean(parts: Any) -> Any:
    """Return each part's mean per channel, `(parts, 1, channels)`.

    A matrix product is the fastest reduction on a CPU. Accelerators may multiply with less than float32 precision.
    """
    if devices.has_accelerator():
        return keras.ops.mean(parts, axis=1, keepdims=True)
    values = parts.shape[1]
    return keras.ops.matmul(keras.ops.full((1, 1, values), 1.0 / values, parts.dtype), parts)


def _standardise(centred: Any, gamma: Any, beta: Any, inverse_deviation: Any) -> Any:
    """Return `centred * inverse_deviation * gamma + beta`, with the gradient of the whole normalisation.

    Args:
        centred: Parts of zero mean per channel, `(parts, values, channels)`.
        gamma: `(channels,)`.
        beta: `(channels,)`.
        inverse_deviation: `(parts, 1, channels)`.
    """
    ops = keras.ops

    # The gradient that arrives at `centred` is the one for the input before centring (Ioffe and Szegedy 2015,
    # arXiv:1502.03167, section 3): it already contains the paths through mean and variance, which are cut by
    # `stop_gradient` in `normalise`. Written out, it reads the parts less often than a backend's own derivative.
    # Everything it uses must be an argument: in JAX, a custom gradient must not close over a traced value.
    @ops.custom_gradient
    def standardise(centred: Any, gamma: Any, beta: Any, inverse_deviation: Any) -> Any:
        scale = inverse_deviation * gamma

        def gradients(*upstreams: Any, upstream: Any = None) -> tuple[Any, Any, Any, Any]:
            upstream = upstreams[0] if upstream is None else upstream  # positional in TensorFlow, by name in torch
            shift_mean = _mean(upstream)
            scale_mean = _mean(upstream * centred) * inverse_deviation
            x_gradient = scale * upstream - scale * inverse_deviation * scale_mean * centred - scale * shift_mean
            values = centred.shape[1]
            gamma_gradient = values * ops.sum(scale_mean, axis=(0, 1))
            beta_gradient = values * ops.sum(shift_mean, axis=(0, 1))
            return x_gradient, gamma_gradient, beta_gradient, ops.zeros_like(inverse_deviation)

        return centred * scale + beta, gradients

    return standardise(centred, gamma, beta, inverse_deviation)


class ShareStatistics(keras.callbacks.Callback):
    """At the end of each epoch, replaces the moving averages by their mean over all workers.

    Moving averages are linear in the statistics of the parts, so averaging once per epoch equals averaging every step.

    Args:
        layers: The normalisations.
        collective: The workers that train the model.
        share: This worker's share of the images of each batch.
    """

    def __init__(self, layers: Sequence[keras.layers.BatchNormalization], collective: Collective, share: float) -> None:
        super().__init__()
        self._variables = [average for layer in layers for average in (layer.moving_mean, layer.moving_variance)]
        self._collective, self._share = collective, np.float32(share)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._collective.size > 1 and self._variables:
            weighted = [self._share * keras.ops.convert_to_numpy(variable) for variable in self._variables]
            for variable, value in zip(self._variables, all_reduce_sums(self._collective, weighted), strict=True):
                variable.assign(value)
