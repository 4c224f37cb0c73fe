"""Size and arithmetic cost of a network: parameters and multiply-accumulates."""

import math

import keras


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
