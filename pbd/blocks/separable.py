"""The paper's designs (Figure 2 of arXiv:2012.03096): two or three separable layers, with or without a skip."""

from typing import Any

import keras
import numpy as np

from pbd.blocks.activation import _activated
from pbd.blocks.decoupling import Factors
from pbd.blocks.seeds import derive_seed
from pbd.records import LayerTask

SHIFT = 2.0
"""Deviations by which a ReLU's input is shifted where it should let nearly everything through."""


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
