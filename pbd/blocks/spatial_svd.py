"""Spatial SVD (Jaderberg et al. 2014): a k x 1 convolution to few channels, then a 1 x k convolution to the outputs.

The factors start from a singular value decomposition of the kernel in the metric of the inputs, and are refitted to the
layer's output as in Zhang et al. 2015 (arXiv:1505.06798); see `low_rank`.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras

from pbd.blocks import factored
from pbd.blocks.activation import activated
from pbd.blocks.design import LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.records import Layer

COLUMN, ROW = "_pbd_column", "_pbd_row"
"""Suffixes of the k x 1 convolution and of the 1 x k convolution."""


@dataclass(frozen=True)
class SpatialSvd(factored.FactoredDesign):
    """A k x 1 convolution to R channels and a 1 x k convolution to the outputs (arXiv:1405.3866).

    R is `percent` of the rank at which the pair has as many multiply-accumulates as the layer, rounded. Per group of
    the layer, with C input channels, N outputs, a kernel of h x w, an input W columns wide, and an output of H' x W',
    that rank is

        H' W' h w C N / (H' W h C + H' W' w N),

    which is w h C N / (h C + w N) without strides. Hence the pair costs `percent` of the layer's multiply-accumulates,
    but for the rounding. R is at least 1 and at most min(h C, w N), from where the pair is exact. The first
    convolution has the layer's stride and dilation over rows, the second over columns, the bias and the activation.
    """

    prefix = "spatial_svd_r"

    def rank(self, layer: Layer) -> int:
        """Return the number of channels between the convolutions, per group."""
        groups, (height, width) = factored.groups(layer), layer.kernel_size
        channels, outputs = layer.input_shape[-1] // groups, layer.output_shape[-1] // groups
        positions = math.prod(layer.output_shape[:2])
        column = layer.output_shape[0] * layer.input_shape[1] * height * channels
        break_even = positions * height * width * channels * outputs / (column + positions * width * outputs)
        return min(max(1, round(self.percent / 100 * break_even)), height * channels, width * outputs)

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        (height, width), (down, right), (tall, wide) = layer.kernel_size, layer.strides, layer.dilation_rate
        channels, outputs = factored.groups(layer) * self.rank(layer), layer.output_shape[-1]
        x = factored.convolution(layer, COLUMN, channels, (height, 1), seed, (down, 1), (tall, 1))(x)
        x = factored.convolution(layer, ROW, outputs, (1, width), seed, (1, right), (1, wide), layer.use_bias)(x)
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        (height, width), rank = layer.kernel_size, self.rank(layer)
        factors, bias = factored.initial_factors(kernel, statistics, layer, rows_in_first=True, rank=rank)
        columns = [each.first.reshape(-1, height, 1, rank).transpose(1, 2, 0, 3) for each in factors]
        rows = [each.rest.reshape(1, rank, width, -1).transpose(0, 2, 1, 3) for each in factors]
        factored.set_kernels(block, layer, COLUMN, columns, None)
        factored.set_kernels(block, layer, ROW, rows, bias if layer.use_bias else None)


DESIGNS = tuple(SpatialSvd(percent) for percent in (25, 33, 50))
