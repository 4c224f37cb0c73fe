"""The statistics of batch normalisations, estimated on some images."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.networks import graph
from pbd.networks.compiled import compiled
from pbd.networks.keras_internals import walk
from pbd.system import watchdog


def recalibrate_batch_norm(model: keras.Model, batches: Iterable[Any], collective: Collective = SINGLE) -> None:
    """Set the moving statistics of all batch normalisations to those of their inputs over these batches, in place.

    Args:
        model: Flat and functional; changed in place.
        batches: This worker's inputs of the model, (images, ...) each.
        collective: The workers that have the other batches.
    """
    statistics = BatchStatistics(model)
    if statistics.layers:
        for batch in batches:
            watchdog.touch()
            statistics.add(batch)
        statistics.assign(collective)


class BatchStatistics:
    """Mean and variance of the inputs of a model's batch normalisations, over batches of images.

    Within a batch, every normalisation is by the statistics of that batch, as in training; all other layers run in
    inference mode. Every image has the same weight. The variance is that within batches plus that of their means.

    Args:
        model: Flat and functional; only `assign` changes it.
    """

    def __init__(self, model: keras.Model) -> None:
        self.layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        self._model = model
        self._moments = compiled(model, self._moments_of)
        self._images = np.zeros(1)
        shapes = [layer.moving_mean.shape for layer in self.layers]
        self._sums = [[np.zeros(shape), np.zeros(shape)] for shape in shapes]

    def add(self, batch: Any) -> None:
        """Add a batch of inputs of the model, (images, ...)."""
        for sums, calls in zip(self._sums, self._moments(keras.ops.convert_to_tensor(batch)), strict=True):
            for call in calls:
                mean, variance = (np.asarray(keras.ops.convert_to_numpy(value), np.float64) for value in call)
                sums[0] += len(batch) / len(calls) * mean
                sums[1] += len(batch) / len(calls) * (variance + mean**2)
        self._images += len(batch)

    def assign(self, collective: Collective = SINGLE) -> None:
        """Set the moving statistics of all normalisations to those of all batches, the other workers' included."""
        flat = [each for sums in self._sums for each in sums]
        *flat, images = all_reduce_sums(collective, [*flat, self._images])
        for layer, first, second in zip(self.layers, flat[::2], flat[1::2], strict=True):
            mean = first / images
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(np.maximum(second / images - mean**2, 0.0))

    def _moments_of(self, batch: Any) -> list[list[tuple[Any, Any]]]:
        """Return mean and variance of the inputs of each normalisation, one pair for each call of a shared one."""
        moments: dict[int, list[tuple[Any, Any]]] = {id(layer): [] for layer in self.layers}

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if id(operation) not in moments:
                return operation(*args, **graph.in_mode(operation, False, kwargs))
            outputs, mean, variance = _normalised(operation, args[0])
            moments[id(operation)].append((mean, variance))
            return outputs

        walk(self._model, batch, call)
        return list(moments.values())


def _normalised(layer: keras.layers.BatchNormalization, x: Any) -> tuple[Any, Any, Any]:
    """Return the outputs of a normalisation by the statistics of this batch, and their mean and variance."""
    axis = layer.axis % len(x.shape)
    inputs = keras.ops.cast(x, layer.variable_dtype)
    mean, variance = keras.ops.moments(inputs, [each for each in range(len(x.shape)) if each != axis])
    outputs = keras.ops.nn.batch_normalization(
        inputs, mean, variance, axis, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
    )
    return keras.ops.cast(outputs, x.dtype), mean, variance
