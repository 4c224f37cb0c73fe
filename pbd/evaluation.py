"""What a network costs and how often it is right: parameters, multiply-accumulates, accuracy."""

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np


def layer_macs(layer: keras.Layer) -> int:
    """Return the multiply-accumulates of one call of a layer, per image.

    Every weight of a convolution's or dense layer's kernel is used once at each output position (at each input
    position where the convolution is transposed). Layers without kernels count as nothing, as is usual.
    """
    kernels = [weight for weight in layer.trainable_weights + layer.non_trainable_weights if "kernel" in weight.name]
    if not kernels or isinstance(layer, keras.Model):
        return 0
    transposed = "Transpose" in type(layer).__name__
    shape = layer.input.shape if transposed else layer.output.shape
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    return math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)


def count_macs(model: keras.Model) -> int:
    """Return the multiply-accumulates of a flat functional model, per image.

    A shared layer counts at each call, each as large as the first.
    """
    return sum(layer_macs(layer) * calls for layer, calls in layer_calls(model))


def layer_calls(model: keras.Model) -> list[tuple[keras.Layer, int]]:
    """Return each layer of a functional model with the number of times that this model calls it."""
    calls: dict[int, int] = {}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
    return [(layer, calls.get(id(layer), 0)) for layer in model.layers]


def count_params(model: keras.Model) -> int:
    """Return the number of parameters, batch statistics included."""
    return model.count_params()


def accuracies(models: Sequence[keras.Model], batches: Iterable[tuple[Any, Any]]) -> list[float]:
    """Return each model's accuracy, the share of images whose largest output is at their label, in one pass.

    Args:
        models: output scores of shape `(batch, classes)`.
        batches: pairs of images and integer labels of shape `(batch,)`.
    """
    right, total = [0] * len(models), 0
    for images, labels in batches:
        total += len(labels)
        for i, model in enumerate(models):
            predicted = np.argmax(model.predict_on_batch(images), axis=-1)
            right[i] += int(np.sum(predicted == np.asarray(labels)))
    return [count / total for count in right]


def accuracy(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> float:
    """Return one model's accuracy; see `accuracies`."""
    return accuracies([model], batches)[0]


def forward_rate(model: keras.Model, images: Any, repeats: int = 3) -> float:
    """Return the multiply-accumulates per second of the model's forward pass on these images, the median of a few."""
    model.predict_on_batch(images)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return count_macs(model) * len(images) / statistics.median(seconds)


def ends_in_probabilities(model: keras.Model, images: Any) -> bool:
    """Return whether the outputs for these images are probabilities (they sum to one) and not logits."""
    scores = np.asarray(model.predict_on_batch(images), dtype=np.float64)
    return bool(np.all(scores >= 0) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3))
