"""Random layers of a network: which there are, and those among them that augment images."""

import itertools
from typing import Any

import keras

from pbd.networks.keras_internals import calls, producer


def is_random(operation: Any) -> bool:
    """Return whether a layer, or a layer inside it, draws random numbers in training mode."""
    if not isinstance(operation, keras.Layer):
        return False
    values = vars(operation).values()
    parts = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    return any(isinstance(part, keras.random.SeedGenerator) or is_random(part) for part in parts)


def split_augmentation(model: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Split a model into the random part that changes pixels, and the network after it, sharing layers.

    The first part ends where the first layers with weights begin; a `Normalization` does not count as one. Its random
    layers (`RandomFlip`, noise on the image, ...) augment images.

    Args:
        model: flat and functional.

    Returns:
        The model from images to a list of tensors, and the model from these tensors to the outputs. If no random layer
        comes before a layer with weights, `None` and the whole model.
    """
    pixels, augments = {id(tensor) for tensor in model.inputs}, False
    frontier: dict[int, Any] = {}
    for operation, inputs, outputs in calls(model):
        if _has_weights(operation) or any(id(tensor) not in pixels for tensor in inputs):
            frontier.update((id(tensor), tensor) for tensor in inputs if id(tensor) in pixels)
        else:
            pixels.update(map(id, outputs))
            augments = augments or is_random(operation)
    if not augments:
        return None, model
    # In an order that does not depend on the network after it: a student and its teacher are cut alike.
    cut = sorted(frontier.values(), key=lambda tensor: (producer(tensor)[0].name, producer(tensor)[1]))
    return keras.Model(model.inputs[0], cut), keras.Model(cut, model.outputs[0], name=model.name)


def _has_weights(operation: Any) -> bool:
    normalises = isinstance(operation, keras.layers.Normalization)
    return isinstance(operation, keras.Layer) and bool(operation.weights) and not normalises
