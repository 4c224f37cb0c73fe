"""The statistics of batch normalisations, estimated on some images."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.networks import graph
from pbd.networks.compiled import compiled
from pbd.system import watchdog


def recalibrate_batch_norm(model: keras.Model, batches: Iterable[Any], collective: Collective = SINGLE) -> None:
    """Set the moving statistics of all batch normalisations to mean and variance over these batches, in place.

    Every image has the same weight. The variance is that within batches plus that of their means. All other layers run
    in inference mode.

    Args:
        model: Changed in place.
        batches: This worker's inputs of the model, (images, ...) each.
        collective: The workers that have the other batches.
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not layers:
        return
    settings = [(layer.momentum, layer.trainable) for layer in layers]
    for layer in layers:
        layer.momentum, layer.trainable = 0.0, True  # Keras does not update the statistics of frozen layers
    try:
        images, sums = _sums(model, layers, batches)
    finally:
        for layer, (momentum, trainable) in zip(layers, settings, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
    *sums, images = all_reduce_sums(collective, [*sums, images])
    for layer, first, second in zip(layers, sums[::2], sums[1::2], strict=True):
        mean = first / images
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(second / images - mean**2, 0.0))


def _sums(
    model: keras.Model, layers: list[keras.layers.BatchNormalization], batches: Iterable[Any]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the number of images, and for each layer the sums over images of its inputs and of their squares.

    Args:
        model: runs with momentum 0: the moving statistics of its normalisations are then those of the last batch.
        layers: its normalisations.
        batches: inputs of the model.
    """
    in_training_mode = {layer.name for layer in layers}
    run = compiled(model, lambda batch: graph.run(model, batch, training=in_training_mode))
    images = np.zeros(1)
    sums = [np.zeros(value.shape) for layer in layers for value in (layer.moving_mean, layer.moving_variance)]
    for batch in batches:
        watchdog.touch()
        run(keras.ops.convert_to_tensor(batch))
        images += len(batch)
        for number, layer in enumerate(layers):
            mean, variance = (
                np.asarray(keras.ops.convert_to_numpy(value), np.float64)
                for value in (layer.moving_mean, layer.moving_variance)
            )
            sums[2 * number] += len(batch) * mean
            sums[2 * number + 1] += len(batch) * (variance + mean**2)
    return images, sums
