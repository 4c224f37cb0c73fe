"""Channel pruning: the layer reads some of its input channels, with a kernel refitted to its output.

The channels are chosen by the error of the output (see `elimination`); they are never worse than those of the largest
weights. In the student, the filters that make the other
channels are removed, so that the layer before becomes cheaper, too.
"""

from dataclasses import dataclass
from typing import Any

import keras

from pbd.blocks import elimination, factored
from pbd.blocks.activation import activated
from pbd.blocks.design import LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.blocks.percentage import PercentageDesign
from pbd.blocks.selection import SELECTED, SelectChannels
from pbd.records import Layer

NARROWED = "_pbd_narrowed"
"""Suffix of the convolution."""
FEWEST_CHANNELS = 4
"""Layers with fewer input channels are left as they are."""


@dataclass(frozen=True)
class Narrow(PercentageDesign):
    """The layer's convolution on `percent` of its input channels, rounded, and at least one (arXiv:1707.06168)."""

    prefix = "narrow_r"

    def applies_to(self, layer: Layer) -> str | None:
        if reason := factored.cannot_replace(layer):
            return reason
        if factored.groups(layer) > 1:
            return f"groups: {factored.groups(layer)}; input channels are chosen for a convolution without groups"
        if layer.input_shape[-1] < FEWEST_CHANNELS:
            return f"input channels: {layer.input_shape[-1]}; from {FEWEST_CHANNELS} on, some are left out"
        return None

    def unprofitable(self, layer: Layer) -> str | None:
        if not layer.producer:
            return "no layer before it could leave out the channels that it does not read"
        return None

    def channels_read(self, layer: Layer) -> int:
        return max(1, round(self.percent / 100 * layer.input_shape[-1]))

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        x = SelectChannels(self.channels_read(layer), name=f"{layer.name}{SELECTED}", dtype=layer.dtype)(x)
        geometry = layer.kernel_size, seed, layer.strides, layer.dilation_rate
        outputs = layer.output_shape[-1]
        x = factored.convolution(layer, NARROWED, outputs, *geometry, use_bias=layer.use_bias)(x)
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        dense, bias, count = kernel.dense, kernel.bias, self.channels_read(layer)
        if statistics is None:
            kept = elimination.by_norm(dense, count)
            weights = dense[kept]
        else:
            # The best bias cancels the mean error, which leaves the covariance in place of the second moment.
            moment = statistics.covariance if layer.use_bias else statistics.moment
            kept, weights = elimination.best(dense, moment, count)
            error = dense.copy()
            error[kept] -= weights
            bias = bias + statistics.mean @ error.reshape(-1, error.shape[-1])
        weights = weights.reshape(count, *layer.kernel_size, -1).transpose(1, 2, 0, 3)
        block.get_layer(f"{layer.name}{SELECTED}").set_weights([kept])
        factored.set_kernels(block, layer, NARROWED, [weights], bias if layer.use_bias else None)


DESIGNS = tuple(Narrow(percent) for percent in (25, 33, 50, 75))
