"""Give Keras operations inside blocks unique names."""

from collections.abc import Callable
from typing import Any

import keras


def named(function: Callable[[Any], Any], x: Any, name: str, *arguments: Any) -> Any:
    """Return what a Keras operation returns for a tensor, under a name of its own.

    Keras names an operation after its class, but names in a network are unique, and it may have another such operation.

    Args:
        function: calls the operation, once, on a Keras tensor.
        x: Keras tensor.
        name: the name of the operation.
        arguments: the further arguments of the operation, behind `x`.
    """
    example = keras.Input(x.shape[1:], dtype=x.dtype)
    operation = keras.Model(example, function(example)).operations[-1]
    return type(operation).from_config({**operation.get_config(), "name": name})(x, *arguments)
