"""Blocks in place of a whole residual block: one convolution, or nothing.

What limits a small network in 8-bit integers is the number of its layers, not their width. One layer in place of a
branch of several is therefore the largest step there is, as in DepthShrinker (Fu et al. 2022, arXiv:2206.00843); unlike
there, the layer is fitted to the outputs of the block.
"""

from typing import Any

import keras
import numpy as np

from pbd.blocks.decoupling import RIDGE
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.blocks.seeds import derive_seed
from pbd.records import RESIDUAL, Layer

MERGED, DROPPED = "_pbd_merged", "_pbd_dropped"
"""Suffixes of the convolution of `Merge`, and of the layer without weights of `Drop`."""


class Merge(BlockDesign):
    """One convolution with a kernel of 3x3 and a bias in place of a residual block, shortcut included.

    Its weights are the linear regression of the block's outputs on its input patches: the least mean squared error of
    any such convolution.
    """

    name = "merge"
    replaces = RESIDUAL
    per_image = True
    needs_pairs = True

    def applies_to(self, layer: Layer) -> str | None:
        sides = zip(layer.input_shape, layer.output_shape, layer.strides, strict=False)
        if any(-(-before // stride) != after for before, after, stride in sides):
            return f"shapes: {layer.input_shape} to {layer.output_shape}; no stride leads from one to the other"
        return None

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        name = f"{layer.name}{MERGED}"
        return keras.layers.Conv2D(
            layer.output_shape[-1],
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            kernel_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name)),
            dtype=layer.dtype,
            name=name,
        )(x)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        if statistics is None:
            return
        moment = statistics.covariance
        ridge = RIDGE * np.trace(moment) / len(moment) + np.finfo(np.float32).tiny
        weights = np.linalg.solve(moment + ridge * np.eye(len(moment)), statistics.cross_covariance)
        bias = statistics.paired_target_mean - statistics.mean @ weights
        # A patch is ordered channel by channel.
        channels, outputs = layer.input_shape[-1], layer.output_shape[-1]
        weights = weights.reshape(channels, *layer.kernel_size, outputs).transpose(1, 2, 0, 3)
        block.get_layer(f"{layer.name}{MERGED}").set_weights([weights, bias])


class Drop(BlockDesign):
    """Nothing in place of a residual block: its output is its input."""

    name = "drop"
    replaces = RESIDUAL
    per_image = True

    def applies_to(self, layer: Layer) -> str | None:
        if layer.input_shape != layer.output_shape:
            shapes = f"{layer.input_shape} to {layer.output_shape}"
            return f"shapes: {shapes}; only a block that keeps the shape can be dropped"
        return None

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        return keras.layers.Identity(dtype=layer.dtype, name=f"{layer.name}{DROPPED}")(x)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        return None


DESIGNS = (Merge(), Drop())
