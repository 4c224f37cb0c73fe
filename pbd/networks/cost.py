"""Size and arithmetic cost of a network: parameters and multiply-accumulates."""

import math
from typing import Any

import keras

from pbd.networks.keras_internals import call_counts, calls


def layer_macs(layer: keras.Layer) -> int:
    """Return the multiply-accumulates of one call of a layer, per image.

    Each weight of a kernel is used once per output position, or once per input position of a transposed convolution
    or a recurrent layer. Layers without a kernel count as zero, as is usual. Biases are not counted.
    """
    kernels = [weight for weight in layer.trainable_weights + layer.non_trainable_weights if "kernel" in weight.name]
    if not kernels or isinstance(layer, keras.Model):
        return 0
    per_input = isinstance(layer, keras.layers.RNN) or "Transpose" in type(layer).__name__
    shape = keras.tree.flatten(layer.input if per_input else layer.output)[0].shape
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    return math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)


def count_macs(model: keras.Model) -> int:
    """Return the multiply-accumulates of a flat functional model, per image.

    A shared layer counts once per call; every call is counted with the shapes of the first.
    """
    return sum(layer_macs(layer) * calls for layer, calls in layer_calls(model))


def count_macs_before(model: keras.Model, tensor: Any) -> int:
    """Return the multiply-accumulates of a flat functional model that a tensor of its graph needs, per image.

    The result is `count_macs` of the model that ends in the tensor.
    """
    needed, macs = {id(tensor)}, 0
    for operation, inputs, outputs in reversed(list(calls(model))):
        if needed.isdisjoint(map(id, outputs)):
            continue
        needed.update(map(id, inputs))
        if isinstance(operation, keras.Layer):
            macs += layer_macs(operation)
    return macs


def layer_calls(model: keras.Model) -> list[tuple[keras.Layer, int]]:
    """Return each layer of a functional model and how often this model calls it."""
    counts = call_counts(model)
    return [(layer, counts.get(id(layer), 0)) for layer in model.layers]


def count_params(model: keras.Model) -> int:
    """Return the number of parameters, including the moving statistics of batch normalisations.

    Integer weights, such as channel indices, are not counted.
    """
    return sum(math.prod(weight.shape) for weight in model.weights if keras.backend.is_float_dtype(weight.dtype))
