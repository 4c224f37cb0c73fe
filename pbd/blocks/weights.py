"""A block's weights, by layer and variable name."""

import keras
import numpy as np


def get_weights(block: keras.Model) -> dict[str, np.ndarray]:
    """Return the block's weights by `layer name/variable name`."""
    return {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in block.layers
        for variable in layer.weights
    }


def set_weights(model: keras.Model, weights: dict[str, np.ndarray]) -> None:
    """Give the model's layers the weights of a block, by name.

    Args:
        model: a block, or a network that holds the block's layers.
        weights: what `get_weights` returned.

    Raises:
        ValueError: the model lacks one of the layers or variables, or a shape differs.
    """
    for key, value in weights.items():
        layer_name, _, variable_name = key.rpartition("/")
        variables = {variable.name: variable for variable in model.get_layer(layer_name).weights}
        if variable_name not in variables:
            raise ValueError(f"{layer_name} must have a variable {variable_name!r}. Received: {sorted(variables)}.")
        variables[variable_name].assign(value)
