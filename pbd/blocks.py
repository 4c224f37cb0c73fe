"""The replacement blocks by name: depthwise-separable layers with the shape of the convolution they replace.

Two families. `decoupled_r1` to `r3`: that many depthwise filters for each input channel, then one pointwise
convolution, with the bias and activation of the replaced layer (network decoupling, Guo et al. 2018). And the designs
of Figure 2 of arXiv:2012.03096: one layer is a separable convolution, a batch normalisation and a ReLU; the first has
the stride, padding and dilation of the replaced layer, the last ends with its activation.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from pbd.decoupling import Factors
from pbd.records import LayerTask

FILTERED, POINTWISE = "_pbd_filtered", "_pbd_pointwise"
"""What a decoupled block appends to its layer's name: for the filtered maps side by side, and for what mixes them."""
SHIFT = 2.0
"""Deviations by which a ReLU's input is shifted where it should let nearly everything through."""

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
    return _activated(x, task)


def _activated(x: Any, task: LayerTask) -> Any:
    """The replaced layer's own activation, where it has one."""
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


def decoupled(x: Any, task: LayerTask, seed: int, rank: int) -> Any:
    """`rank` depthwise filters for each input channel, side by side, then one pointwise convolution over them all.

    Never written as a depth multiplier: it has no fast kernel in any runtime. And not as separable branches that are
    added: a normalisation behind their sum cannot be folded into a convolution (figures: `experiments/README.md`).
    """
    name = f"{task.layer_name}_pbd"
    filtered = [
        keras.layers.DepthwiseConv2D(
            task.kernel_size,
            strides=task.strides,
            padding=task.padding,
            dilation_rate=task.dilation_rate,
            use_bias=False,
            depthwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, f"depthwise{number}")),
            name=f"{name}_depthwise{number}",
        )(x)
        for number in range(1, most_ranks(task, rank) + 1)
    ]
    x = filtered[0] if len(filtered) == 1 else keras.layers.Concatenate(name=f"{task.layer_name}{FILTERED}")(filtered)
    x = keras.layers.Conv2D(
        task.output_shape[-1],
        1,
        use_bias=task.use_bias,
        kernel_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "pointwise")),
        name=f"{task.layer_name}{POINTWISE}",
    )(x)
    return _activated(x, task)


def most_ranks(task: LayerTask, rank: int) -> int:
    """Return the rank, or that of a whole slice of the kernel where it is less: no more filters can help."""
    return min(rank, task.kernel_size[0] * task.kernel_size[1], task.output_shape[-1])


DECOUPLED_RANKS = {f"decoupled_r{rank}": rank for rank in (1, 2, 3)}

BLOCKS: dict[str, BlockBuilder] = {
    **{name: functools.partial(decoupled, rank=rank) for name, rank in DECOUPLED_RANKS.items()},
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


def set_factors(block: keras.Model, task: LayerTask, factors: Factors, bias: np.ndarray) -> None:
    """Give a decoupled block the factors of a kernel: its output is then that of the convolution they make.

    Args:
        block: made by `build_block` with a `decoupled` design of the factors' rank.
        task: its layer.
        factors: `(channels, positions, rank)` and `(channels, rank, outputs)`.
        bias: `(outputs,)`; left out where the layer has none.
    """
    name = f"{task.layer_name}_pbd"
    channels, _, rank = factors.depthwise.shape
    for number in range(rank):
        filters = factors.depthwise[:, :, number].T.reshape(*task.kernel_size, channels, 1)
        block.get_layer(f"{name}_depthwise{number + 1}").set_weights([filters])
    rows = factors.pointwise.transpose(1, 0, 2).reshape(1, 1, rank * channels, -1)
    block.get_layer(f"{task.layer_name}{POINTWISE}").set_weights([rows, bias] if task.use_bias else [rows])


def set_separable(
    block: keras.Model, task: LayerTask, factors: Factors, target_mean: np.ndarray, target_deviation: np.ndarray
) -> None:
    """Let a stack of separable layers begin as the rank-1 factors of a kernel, in its first layer.

    The layers behind it begin as the identity: their inputs are shifted so far that the ReLU between cuts little, and
    the last normalisation gives each channel the mean and deviation of the target. In a design with a skip, the first
    layer's normalisation does, and the last one's output begins at zero (as Goyal et al. 2017, arXiv:1706.02677).

    Args:
        block: made by `build_block` with one of the paper's designs.
        task: its layer.
        factors: of rank 1.
        target_mean: of each output channel of the replaced layer, `(outputs,)`.
        target_deviation: the same.
    """
    name = f"{task.layer_name}_pbd"
    normalisations = [layer for layer in block.layers if isinstance(layer, keras.layers.BatchNormalization)]
    depth = len(normalisations)
    skip = any(isinstance(layer, keras.layers.Add) for layer in block.layers)
    filters = factors.depthwise.transpose(1, 0, 2).reshape(*task.kernel_size, -1, 1)
    block.get_layer(f"{name}_sep1").set_weights([filters, factors.pointwise.transpose(1, 0, 2)[None]])
    identity = np.zeros((*task.kernel_size, task.output_shape[-1], 1))
    identity[tuple((size - 1) // 2 for size in task.kernel_size)] = 1.0
    for position in range(2, depth + 1):
        block.get_layer(f"{name}_sep{position}").set_weights([identity, np.eye(task.output_shape[-1])[None, None]])
    for position, layer in enumerate(normalisations, start=1):
        layer.beta.assign(np.full(task.output_shape[-1], SHIFT))
        if skip and position == 1:
            layer.gamma.assign(target_deviation)
            layer.beta.assign(SHIFT * target_deviation)
        elif skip and position == depth:
            layer.gamma.assign(np.zeros(task.output_shape[-1]))
            layer.beta.assign(target_mean - SHIFT * target_deviation)
        elif position == depth:
            layer.gamma.assign(target_deviation)
            layer.beta.assign(target_mean)
