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

from pbd import graph
from pbd.teamwork import Team, add_up_all

SMALLEST = 32
"""Images of a part, at least, as each worker has in Goyal et al. 2017 (arXiv:1706.02677)."""


def part_size(batch_size: int) -> int:
    """Return the size of the parts of a batch: the least that divides it and is no smaller than `SMALLEST`."""
    return next((size for size in range(SMALLEST, batch_size) if batch_size % size == 0), batch_size)


def unit(model: keras.Model, batch_size: int) -> int:
    """Return into pieces of how many images a batch may be split while the model is trained.

    Into none where a layer draws random numbers: they would be others for each piece.
    """
    layers = _trained(model)
    if layers != normalisations(model) or any(map(_draws, model.layers)):
        return batch_size
    return part_size(batch_size) if layers else 1


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

    return graph.walk(model, images, lambda operation: operation, call)


def normalise(layer: keras.layers.BatchNormalization, x: Any, size: int) -> Any:
    """Apply a layer in training mode to parts of a batch; its moving averages take in the mean of their statistics."""
    ops = keras.ops
    parts = ops.cast(x, layer.variable_dtype)
    parts = ops.reshape(parts, (-1, size * int(np.prod(x.shape[1:-1])), x.shape[-1]))
    mean, variance = ops.moments(parts, axes=[1], keepdims=True)
    for moving, seen in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(layer.momentum * moving + (1.0 - layer.momentum) * ops.mean(seen, axis=(0, 1)))
    scale = ops.rsqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma
    shift = -mean * scale
    if layer.center:
        shift = shift + layer.beta
    return ops.cast(ops.reshape(parts * scale + shift, (-1, *x.shape[1:])), x.dtype)


class ShareStatistics(keras.callbacks.Callback):
    """At the end of an epoch, gives each worker of a team the moving averages over everyone's parts.

    They are linear in the statistics of the parts, so once an epoch is as good as at every step.
    """

    def __init__(self, layers: Sequence[keras.layers.BatchNormalization], team: Team, share: float) -> None:
        super().__init__()
        self._variables = [moving for layer in layers for moving in (layer.moving_mean, layer.moving_variance)]
        self._team, self._share = team, np.float32(share)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._team.size > 1 and self._variables:
            own = [self._share * keras.ops.convert_to_numpy(variable) for variable in self._variables]
            for variable, value in zip(self._variables, add_up_all(self._team, own), strict=True):
                variable.assign(value)
