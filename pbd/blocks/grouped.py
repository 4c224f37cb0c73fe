"""Grouped convolution (Xie et al. 2017, arXiv:1611.05431): the outputs of a group read the inputs of that group alone.

The kernel of each group has the least error of the layer's output that any kernel on these inputs has; see
`elimination.refit`. The groups are consecutive channels, and each is a convolution of its own: TensorFlow trains a
grouped `Conv2D` on CPUs many times as slowly (docs/measurements/2026-11-block-designs.md).
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pbd.blocks import elimination, factored, operation
from pbd.blocks.activation import activated
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.records import Layer

PREFIX = "grouped_g"
"""The name without the number of groups."""
GROUP_COUNTS = range(2, 65)
"""Numbers of groups that names may give."""
FEWEST_PER_GROUP = 16
"""Groups of fewer input or output channels are not faster than half as many groups
(docs/measurements/2026-11-block-designs.md)."""
SPLIT, GROUP, JOINED = "_pbd_split", "_pbd_group", "_pbd_joined"
"""Suffixes of the operation that splits the inputs, of the convolutions, with their numbers from 1, and of the
concatenation of their outputs."""


@dataclass(frozen=True)
class Grouped(BlockDesign):
    """The layer's convolution in `groups` groups of channels: the layer's multiply-accumulates divided by `groups`."""

    groups: int
    name: str = field(init=False)
    per_image = True
    needs_inputs = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{PREFIX}{self.groups}")

    def applies_to(self, layer: Layer) -> str | None:
        if reason := factored.cannot_replace(layer):
            return reason
        if factored.groups(layer) > 1:
            return f"groups: {factored.groups(layer)}; only a convolution without groups is divided into groups"
        channels, outputs = layer.input_shape[-1], layer.output_shape[-1]
        if channels % self.groups or outputs % self.groups:
            return f"channels: {channels} to {outputs}; both must be divisible by {self.groups}"
        return None

    def unprofitable(self, layer: Layer) -> str | None:
        fewest = min(layer.input_shape[-1], layer.output_shape[-1]) // self.groups
        if fewest < FEWEST_PER_GROUP:
            return f"channels of a group: {fewest}; grouped convolutions are faster from {FEWEST_PER_GROUP} on"
        return None

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        split = operation.named(lambda tensor: keras.ops.split(tensor, self.groups, axis=-1), x, f"{layer.name}{SPLIT}")
        geometry = layer.kernel_size, seed, layer.strides, layer.dilation_rate, layer.use_bias
        filters = layer.output_shape[-1] // self.groups
        outputs = [
            factored.convolution(layer, f"{GROUP}{number}", filters, *geometry)(inputs)
            for number, inputs in enumerate(split, 1)
        ]
        x = keras.layers.Concatenate(axis=-1, dtype=layer.dtype, name=f"{layer.name}{JOINED}")(outputs)
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        moment = None
        if statistics is not None:
            # The best bias cancels the mean error, which leaves the covariance in place of the second moment.
            moment = statistics.covariance if layer.use_bias else statistics.moment
        for number, (inputs, outputs) in enumerate(self._parts(layer), 1):
            part, bias = kernel.dense[:, :, outputs], kernel.bias[outputs]
            weights = part[inputs] if moment is None else elimination.refit(part, moment, inputs)
            if statistics is not None:
                error = part.copy()
                error[inputs] -= weights
                bias = bias + statistics.mean @ error.reshape(-1, error.shape[-1])
            kernels = [weights.transpose(1, 0, 2).reshape(*layer.kernel_size, *weights.shape[::2])]
            factored.set_kernels(block, layer, f"{GROUP}{number}", kernels, bias if layer.use_bias else None)

    def _parts(self, layer: Layer) -> list[tuple[np.ndarray, slice]]:
        """Return the input channels and the output channels of each group."""
        channels, outputs = np.arange(layer.input_shape[-1]), layer.output_shape[-1] // self.groups
        return [
            (inputs, slice(group * outputs, (group + 1) * outputs))
            for group, inputs in enumerate(np.split(channels, self.groups))
        ]


DESIGNS = tuple(Grouped(groups) for groups in (2, 4, 8))
