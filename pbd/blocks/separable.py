"""The paper's designs (Figure 2 of arXiv:2012.03096): two or three separable layers, with or without a skip.

A separable layer is a separable convolution, a batch normalisation and a ReLU. The first has the stride, padding and
dilation of the replaced layer, the last ends with its activation.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pbd.blocks import depthwise
from pbd.blocks.activation import activated
from pbd.blocks.decoupling import Factors
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.initialisation import Statistics, initial_factors
from pbd.blocks.seeds import derive_seed
from pbd.records import Layer

SHIFT = 2.0
"""Shift of a ReLU's input, in standard deviations, where the ReLU should be almost the identity."""
_DEPTHS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class SeparableStack(BlockDesign):
    """`depth` separable layers; with `skip`, the output of the first is added to that of the last."""

    depth: int
    skip: bool
    name: str = field(init=False)
    per_image = False
    needs_inputs = True
    needs_targets = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{_DEPTHS[self.depth]}_layer{'_skip' if self.skip else ''}")

    def applies_to(self, layer: Layer) -> str | None:
        return depthwise.cannot_replace(layer)

    def unprofitable(self, layer: Layer) -> str | None:
        return depthwise.slow_for(layer)

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        shortcut = None
        for position in range(1, self.depth + 1):
            x = _separable(x, layer, seed, position)
            if position < self.depth:
                x = keras.layers.ReLU(dtype=layer.dtype, name=f"{layer.name}_pbd_relu{position}")(x)
            if position == 1:
                shortcut = x
        if self.skip:
            x = keras.layers.Add(dtype=layer.dtype, name=f"{layer.name}_pbd_add")([shortcut, x])
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        if statistics is None:
            return
        factors, _ = initial_factors(kernel, statistics, 1, layer.use_bias)
        self.set_factors(block, layer, factors, statistics.target_mean, statistics.target_deviation)

    def set_factors(
        self,
        block: keras.Model,
        layer: Layer,
        factors: Factors,
        target_mean: np.ndarray,
        target_deviation: np.ndarray,
    ) -> None:
        """Set the weights so that the first layer computes the convolution given by rank-1 factors of a kernel.

        The later layers are initialised as the identity: their inputs are shifted by `SHIFT`, so that the ReLU between
        is almost the identity, and the last normalisation gives each channel the mean and deviation of the target.
        With a skip, the normalisation of the first layer does so, and the last layer's output starts at a constant
        (zero gamma: Goyal et al. 2017, arXiv:1706.02677).

        Args:
            block: built by this design.
            layer: the layer that it replaces.
            factors: factors of rank 1.
            target_mean: mean of each output channel of the replaced layer, `(outputs,)`.
            target_deviation: standard deviation of the same, `(outputs,)`.
        """
        name, outputs = f"{layer.name}_pbd", layer.output_shape[-1]
        filters = factors.depthwise.transpose(1, 0, 2).reshape(*layer.kernel_size, -1, 1)
        block.get_layer(f"{name}_sep1").set_weights([filters, factors.pointwise.transpose(1, 0, 2)[None]])
        identity = np.zeros((*layer.kernel_size, outputs, 1))
        identity[tuple((size - 1) // 2 for size in layer.kernel_size)] = 1.0
        for position in range(2, self.depth + 1):
            block.get_layer(f"{name}_sep{position}").set_weights([identity, np.eye(outputs)[None, None]])
        for position in range(1, self.depth + 1):
            normalisation = block.get_layer(f"{name}_bn{position}")
            normalisation.beta.assign(np.full(outputs, SHIFT))
            if self.skip and position == 1:
                normalisation.gamma.assign(target_deviation)
                normalisation.beta.assign(SHIFT * target_deviation)
            elif self.skip and position == self.depth:
                normalisation.gamma.assign(np.zeros(outputs))
                normalisation.beta.assign(target_mean - SHIFT * target_deviation)
            elif position == self.depth:
                normalisation.gamma.assign(target_deviation)
                normalisation.beta.assign(target_mean)


DESIGNS = tuple(SeparableStack(depth, skip) for skip in (False, True) for depth in (2, 3))


def _separable(x: Any, layer: Layer, seed: int, position: int) -> Any:
    """Return the output of a separable convolution and its batch normalisation, which makes a bias redundant."""
    first = position == 1
    name = f"{layer.name}_pbd_sep{position}"
    x = keras.layers.SeparableConv2D(
        layer.output_shape[-1],
        layer.kernel_size,
        strides=layer.strides if first else 1,
        padding=layer.padding if first else "same",
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        use_bias=False,
        depthwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "depthwise")),
        pointwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "pointwise")),
        dtype=layer.dtype,
        name=name,
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, dtype=layer.dtype, name=f"{layer.name}_pbd_bn{position}")(x)
