"""Normalise a batch in fixed parts, each by its own statistics, so that workers can split it and change nothing.

Ghost batch normalisation (Hoffer et al. 2017, arXiv:1705.08741), which on ResNet20 costs no accuracy that could be told
from chance (`experiments/README.md`). How a batch is cut depends on its size alone, never on the number of workers: one
worker computes all parts, several compute some each.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from pbd.collective import Collective, all_reduce_sums
from pbd.networks.keras_internals import walk
from pbd.system import devices

SMALLEST = 32
"""Images of a part, at least, as each worker has in Goyal et al. 2017 (arXiv:1706.02677)."""


def ghost_batch_size(batch_size: int) -> int:
    """Return the size of the parts of a batch: the least that divides it and is no smaller than `SMALLEST`."""
    return next((size for size in range(SMALLEST, batch_size) if batch_size % size == 0), batch_size)


def split_unit(model: keras.Model, batch_size: int) -> int:
    """Return into pieces of how many images a batch may be split while the model is trained.

    Into none where a layer draws random numbers: they would be others for each piece.
    """
    layers = _trained(model)
    if layers != normalisations(model) or any(map(_draws, model.layers)):
        return batch_size
    return ghost_batch_size(batch_size) if layers else 1


def _draws(layer: keras.Layer) -> bool:
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())


def normalisations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the layers of a flat model that are trained to normalise each channel, the last axis."""
    return [layer for layer in _trained(model) if layer.axis in (-1, len(layer.input.shape) - 1)]


def _trained(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]


def train(model: keras.Model, images: Any, size: int) -> Any:
    """Run a flat model in training mode, its normalisations on parts of so many images.

    Args:
        model: functional.
        images: as many as a multiple of `size`.
        size: images that are normalised together.
    """
    parted = {id(layer) for layer in normalisations(model)}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in parted:
            return normalise(operation, args[0], size)
        if "training" in inspect.signature(operation.call).parameters:
            kwargs["training"] = True
        return operation(*args, **kwargs)

    return walk(model, images, call)


def normalise(layer: keras.layers.BatchNormalization, x: Any, size: int) -> Any:
    """Apply a layer in training mode to parts of a batch; its moving averages take in the mean of their statistics."""
    ops, channels = keras.ops, x.shape[-1]
    parts = ops.cast(x, layer.variable_dtype)
    parts = ops.reshape(parts, (-1, size * int(np.prod(x.shape[1:-1])), channels))
    mean = _mean(parts)
    centred = parts - ops.stop_gradient(mean)
    variance = _mean(ops.square(centred))
    for moving, seen in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(layer.momentum * moving + (1.0 - layer.momentum) * ops.mean(seen, axis=(0, 1)))
    gamma = ops.copy(layer.gamma) if layer.scale else ops.ones((channels,), parts.dtype)
    beta = ops.copy(layer.beta) if layer.center else ops.zeros((channels,), parts.dtype)
    outputs = _standardised(centred, gamma, beta, ops.rsqrt(variance + layer.epsilon))
    return ops.cast(ops.reshape(outputs, (-1, *x.shape[1:])), x.dtype)


def _mean(parts: Any) -> Any:
    """Return each part's mean per channel, (parts, 1, channels).

    On a CPU as a product, the fastest of reductions there; accelerators may multiply in less than float32.
    """
    if devices.has_accelerator():
        return keras.ops.mean(parts, axis=1, keepdims=True)
    values = parts.shape[1]
    return keras.ops.matmul(keras.ops.full((1, 1, values), 1.0 / values, parts.dtype), parts)


def _standardised(centred: Any, gamma: Any, beta: Any, inverse_deviation: Any) -> Any:
    """Return parts over their deviations, times gamma, plus beta.

    The gradient by the parts is that by what they were before they were centred, their deviations no constants: written
    out (Ioffe and Szegedy 2015, arXiv:1502.03167), it goes over the parts less often than the backend would.

    Args:
        centred: parts of zero mean per channel, `(parts, values, channels)`.
        gamma: `(channels,)`.
        beta: `(channels,)`.
        inverse_deviation: `(parts, 1, channels)`.
    """
    ops = keras.ops

    @ops.custom_gradient
    def standardise(centred: Any, gamma: Any, beta: Any) -> Any:
        scale = inverse_deviation * gamma

        def gradients(*upstreams: Any, upstream: Any = None) -> tuple[Any, Any, Any]:
            upstream = upstreams[0] if upstream is None else upstream
            of_shift = _mean(upstream)
            of_scale = _mean(upstream * centred) * inverse_deviation
            of_parts = scale * upstream - scale * inverse_deviation * of_scale * centred - scale * of_shift
            values = centred.shape[1]
            return of_parts, values * ops.sum(of_scale, axis=(0, 1)), values * ops.sum(of_shift, axis=(0, 1))

        return centred * scale + beta, gradients

    return standardise(centred, gamma, beta)


class ShareStatistics(keras.callbacks.Callback):
    """At the end of an epoch, gives each worker of a collective the moving averages over everyone's parts.

    They are linear in the statistics of the parts, so once an epoch is as good as at every step.
    """

    def __init__(self, layers: Sequence[keras.layers.BatchNormalization], collective: Collective, share: float) -> None:
        super().__init__()
        self._variables = [moving for layer in layers for moving in (layer.moving_mean, layer.moving_variance)]
        self._team, self._share = collective, np.float32(share)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._team.size > 1 and self._variables:
            own = [self._share * keras.ops.convert_to_numpy(variable) for variable in self._variables]
            for variable, value in zip(self._variables, all_reduce_sums(self._team, own), strict=True):
                variable.assign(value)
