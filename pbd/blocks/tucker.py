"""Tucker-2 (Kim et al. 2016): a pointwise convolution to few channels, a k x k convolution, and a pointwise one again.

The factors start from a higher-order SVD of the kernel, weighted by the second moment of the inputs and the covariance
of the outputs, and are refined by alternating least squares on the second moment; see `low_rank`.
"""

from dataclasses import dataclass
from typing import Any

import keras

from pbd.blocks import factored, low_rank
from pbd.blocks.activation import activated
from pbd.blocks.design import LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.records import Layer

FIRST, CORE, LAST = "_pbd_first", "_pbd_core", "_pbd_last"
"""Suffixes of the pointwise convolution of the inputs, the k x k convolution, and that to the outputs."""


@dataclass(frozen=True)
class Tucker2(factored.FactoredDesign):
    """A 1 x 1 convolution to R1 channels, a k x k convolution to R2, and a 1 x 1 to the outputs (arXiv:1511.06530).

    R1 and R2 are `percent` of the input and output channels of a group, rounded, at least 1. The core keeps the shape
    of the kernel, so its cost is the square of `percent`; the two pointwise convolutions add to it. As many channels
    in as out, a 3 x 3 kernel and no stride give 25%, 36% and 49% of the layer's multiply-accumulates at 40, 50 and 60
    percent. The core has the layer's stride, dilation and padding, the last convolution its bias and activation.
    """

    prefix = "tucker2_r"

    def ranks(self, layer: Layer) -> tuple[int, int]:
        """Return R1 and R2, per group."""
        groups, positions = factored.groups(layer), layer.kernel_size[0] * layer.kernel_size[1]
        channels, outputs = layer.input_shape[-1] // groups, layer.output_shape[-1] // groups
        first, last = (min(size, max(1, round(self.percent / 100 * size))) for size in (channels, outputs))
        # One unfolding of the core cannot have a larger rank than it has columns.
        return min(first, positions * last), min(last, positions * first)

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        groups, (first, last) = factored.groups(layer), self.ranks(layer)
        x = factored.convolution(layer, FIRST, groups * first, (1, 1), seed)(x)
        geometry = layer.kernel_size, seed, layer.strides, layer.dilation_rate
        x = factored.convolution(layer, CORE, groups * last, *geometry)(x)
        x = factored.convolution(layer, LAST, layer.output_shape[-1], (1, 1), seed, use_bias=layer.use_bias)(x)
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        first, last = self.ranks(layer)
        factors, bias = factored.initial_factors(kernel, statistics, layer, False, rank=first, output_rank=last)
        split = [low_rank.split_outputs(each.rest, last) for each in factors]
        cores = [core.transpose(1, 0, 2).reshape(*layer.kernel_size, first, last) for core, _ in split]
        factored.set_kernels(block, layer, FIRST, [each.first[None, None] for each in factors], None)
        factored.set_kernels(block, layer, CORE, cores, None)
        pointwise = [pointwise[None, None] for _, pointwise in split]
        factored.set_kernels(block, layer, LAST, pointwise, bias if layer.use_bias else None)


DESIGNS = tuple(Tucker2(percent) for percent in (40, 50, 60))
