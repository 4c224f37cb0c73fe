"""Pieces of a network: a layer, or what replaces it, with what runtimes compute together with it."""

from collections.abc import Callable
from typing import Any

import keras

from pbd.networks import fusion
from pbd.networks.residuals import is_addition

Builder = Callable[[Any], Any]
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


def piece(
    network: keras.Model, layer: str, build: Builder | None = None, input_shape: tuple[int, ...] | None = None
) -> keras.Model:
    """Return a layer or its replacement as a model of its own, with the addition and the activation behind it.

    Runtimes compute an addition to a shortcut and an activation within a convolution, but not within every block. The
    weights are new: they do not change the speed.

    Args:
        network: a network in its inference form (see `inference_form.fold`).
        layer: name of the layer; of a residual block, the name of its addition.
        build: returns the output of the replacement for an input tensor; by default the layer itself is built.
        input_shape: height, width and channels of the input; by default those of the layer.

    Returns:
        A model from the input of the layer, and from the other terms of additions behind it, to one feature map.
    """
    replaced = next(each for each in network.operations if each.name == layer)  # `x + y` is no layer
    users = fusion.consumers(network)
    inputs = [keras.Input(input_shape or replaced.input.shape[1:])]
    y = (build or _copy(replaced))(inputs[0])
    tensor = replaced.output
    while len(users[id(tensor)]) == 1:
        operation = users[id(tensor)][0][0]
        if is_addition(operation) and isinstance(operation.input, list):
            others = [keras.Input(term.shape[1:]) for term in operation.input if term is not tensor]
            inputs += others
            y = keras.layers.Add()([y, *others])
        elif isinstance(operation, _ACTIVATIONS):
            y = _copy(operation)(y)
        else:
            break
        tensor = operation.output
    return keras.Model(inputs, y, name=f"{layer}_piece")


def narrowed(layer: keras.layers.Conv2D, filters: int) -> Builder:
    """Return a builder of the same convolution with other channel counts.

    Args:
        layer: a convolution with one group; the number of its input channels becomes that of the tensor.
        filters: output channels.
    """
    return lambda x: keras.layers.Conv2D.from_config({**layer.get_config(), "filters": filters})(x)


def _copy(layer: Any) -> Any:
    return type(layer).from_config(layer.get_config())
