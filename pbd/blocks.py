"""The replacement blocks by name: depthwise-separable layers with the shape of the convolution they replace.

The designs are those of Figure 2 of arXiv:2012.03096. One layer is a separable convolution, a batch normalisation
and a ReLU; the first has the stride, padding and dilation of the replaced layer, the last ends with its activation.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from pbd.records import LayerTask

BlockBuilder = Callable[[Any, LayerTask, int], Any]
"""Maps (input tensor, task, seed) to an output tensor; the layers it makes are named after the task's layer."""


def derive_seed(seed: int, *names: str) -> int:
    """Return a 31-bit seed that depends on the run's seed and the names only, never on rank or order."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _separable(x: Any, task: LayerTask, seed: int, position: int) -> Any:
    """One separable convolution and its batch normalisation; no bias, which the normalisation would cancel."""
    first = position == 1
    name = f"{task.layer_name}_pbd_sep{position}"
    x = keras.layers.SeparableConv2D(
        task.output_shape[-1],
        task.kernel_size,
        strides=task.strides if first else 1,
        padding=task.padding if first else "same",
        dilation_rate=task.dilation_rate,
        use_bias=False,
        depthwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "depthwise")),
        pointwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "pointwise")),
        name=name,
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, name=f"{task.layer_name}_pbd_bn{position}")(x)


def _separable_stack(x: Any, task: LayerTask, seed: int, depth: int, skip: bool) -> Any:
    shortcut = None
    for position in range(1, depth + 1):
        x = _separable(x, task, seed, position)
        if position < depth:
            x = keras.layers.ReLU(name=f"{task.layer_name}_pbd_relu{position}")(x)
        if position == 1:
            shortcut = x
    if skip:
        x = keras.layers.Add(name=f"{task.layer_name}_pbd_add")([shortcut, x])
    activation = keras.activations.get(task.activation)
    if activation is keras.activations.linear:
        return x
    return keras.layers.Activation(activation, name=f"{task.layer_name}_pbd_activation")(x)


def two_layer(x: Any, task: LayerTask, seed: int) -> Any:
    """Two separable layers."""
    return _separable_stack(x, task, seed, depth=2, skip=False)


def three_layer(x: Any, task: LayerTask, seed: int) -> Any:
    """Three separable layers."""
    return _separable_stack(x, task, seed, depth=3, skip=False)


def two_layer_skip(x: Any, task: LayerTask, seed: int) -> Any:
    """Two separable layers; the first one's output is added to the last one's, before the activation."""
    return _separable_stack(x, task, seed, depth=2, skip=True)


def three_layer_skip(x: Any, task: LayerTask, seed: int) -> Any:
    """Three separable layers; the first one's output is added to the last one's, before the activation."""
    return _separable_stack(x, task, seed, depth=3, skip=True)


BLOCKS: dict[str, BlockBuilder] = {
    "two_layer": two_layer,
    "three_layer": three_layer,
    "two_layer_skip": two_layer_skip,
    "three_layer_skip": three_layer_skip,
}


def build_block(block: str, task: LayerTask, seed: int) -> keras.Model:
    """Return the block as a model of its own, from `task.input_shape` to `task.output_shape`."""
    inputs = keras.Input(task.input_shape)
    return keras.Model(inputs, BLOCKS[block](inputs, task, seed), name=f"{task.layer_name}_pbd_block")


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
