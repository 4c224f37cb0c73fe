"""Grouped convolution (Xie et al. 2017, arXiv:1611.05431): the outputs of a group read the inputs of that group alone.

The kernel of each group has the least error of the layer's output that any kernel on these inputs has; see
`elimination.refit`. The groups are consecutive channels, so that a grouped block is one layer.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pbd.blocks import elimination, factored
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
GROUPED = "_pbd_grouped"
"""Suffix of the convolution."""


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
        if factored.groups(layer) > 1:
            return f"groups: {factored.groups(layer)}; only a convolution without groups is divided into groups"
        channels, outputs = layer.input_shape[-1], layer.output_shape[-1]
        if channels % self.groups or outputs % self.groups:
            return f"channels: {channels} to {outputs}; both must be divisible by {self.groups}"
        return factored.cannot_replace(layer)

    def unprofitable(self, layer: Layer) -> str | None:
        fewest = min(layer.input_shape[-1], layer.output_shape[-1]) // self.groups
        if fewest < FEWEST_PER_GROUP:
            return f"channels of a group: {fewest}; grouped convolutions are faster from {FEWEST_PER_GROUP} on"
        return None

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        geometry = layer.kernel_size, seed, layer.strides, layer.dilation_rate, layer.use_bias
        outputs = layer.output_shape[-1]
        return activated(factored.convolution(layer, GROUPED, outputs, *geometry, group_count=self.groups)(x), layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        dense, bias = kernel.dense, kernel.bias
        approximation, moment = np.zeros_like(dense), None
        if statistics is not None:
            # The best bias cancels the mean error, which leaves the covariance in place of the second moment.
            moment = statistics.covariance if layer.use_bias else statistics.moment
        for inputs, outputs in self._parts(layer):
            part = dense[:, :, outputs]
            refitted = part[inputs] if moment is None else elimination.refit(part, moment, inputs)
            approximation[inputs, :, outputs] = refitted
        if statistics is not None:
            bias = bias + statistics.mean @ (dense - approximation).reshape(-1, dense.shape[-1])
        kernels = [
            approximation[inputs, :, outputs].transpose(1, 0, 2).reshape(*layer.kernel_size, len(inputs), -1)
            for inputs, outputs in self._parts(layer)
        ]
        factored.set_kernels(block, layer, GROUPED, kernels, bias if layer.use_bias else None)

    def _parts(self, layer: Layer) -> list[tuple[np.ndarray, slice]]:
        """Return the input channels and the output channels of each group."""
        channels, outputs = np.arange(layer.input_shape[-1]), layer.output_shape[-1] // self.groups
        return [
            (inputs, slice(group * outputs, (group + 1) * outputs))
            for group, inputs in enumerate(np.split(channels, self.groups))
        ]


DESIGNS = tuple(Grouped(groups) for groups in (2, 4, 8))
