"""Common to designs of convolutions: the layers that suit, groups, the Keras layers, and the factors of a kernel."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.blocks import low_rank
from pbd.blocks.design import LayerKernel
from pbd.blocks.initialisation import Statistics
from pbd.blocks.low_rank import Factors
from pbd.blocks.percentage import PercentageDesign
from pbd.blocks.seeds import derive_seed
from pbd.records import Layer

FEWEST_CHANNELS = 8
"""Blocks with fewer input channels are not faster than their layer, such as the first of an RGB network
(docs/measurements/2026-11-block-designs.md)."""


def cannot_replace(layer: Layer) -> str | None:
    """Return why convolutions cannot replace this layer, or None."""
    if layer.data_format == "channels_first":
        return "channels_first: convert the model to channels_last"
    return None


@dataclass(frozen=True)
class FactoredDesign(PercentageDesign):
    """A design that factors the layer's kernel into consecutive convolutions."""

    def applies_to(self, layer: Layer) -> str | None:
        return cannot_replace(layer)

    def unprofitable(self, layer: Layer) -> str | None:
        channels = layer.input_shape[-1]
        if channels < FEWEST_CHANNELS:
            return f"input channels: {channels}; consecutive convolutions are faster from {FEWEST_CHANNELS} on"
        return None


def groups(layer: Layer) -> int:
    """Return the number of groups of a convolution."""
    # The kernel has (channels of a group) x positions x outputs values; a bias adds less than 1 to the quotient.
    per_group = layer.params // (math.prod(layer.kernel_size) * layer.output_shape[-1])
    return max(1, layer.input_shape[-1] // max(1, per_group))


def convolution(
    layer: Layer,
    suffix: str,
    filters: int,
    kernel_size: tuple[int, int],
    seed: int,
    strides: tuple[int, int] = (1, 1),
    dilation_rate: tuple[int, int] = (1, 1),
    use_bias: bool = False,
) -> keras.layers.Conv2D:
    """Return a convolution of a block without activation, with as many groups as the replaced layer.

    Args:
        layer: the layer that the block replaces.
        suffix: the name of the convolution is the layer's name and this suffix.
        filters: output channels of all groups.
        kernel_size: rows and columns.
        seed: the seed of the run.
        strides: over rows and columns.
        dilation_rate: the dilation rate of rows and columns.
        use_bias: whether it has a bias.
    """
    name = f"{layer.name}{suffix}"
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=layer.padding,
        dilation_rate=dilation_rate,
        groups=groups(layer),
        data_format=layer.data_format,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name)),
        dtype=layer.dtype,
        name=name,
    )


def initial_factors(
    kernel: LayerKernel,
    statistics: Statistics | None,
    layer: Layer,
    rows_in_first: bool,
    rank: int,
    output_rank: int | None = None,
) -> tuple[list[Factors], np.ndarray]:
    """Return the factors of each group of a kernel, and the bias that minimises the error with them.

    The outputs of a group depend on the inputs of that group alone, so each group is a problem of its own. Without
    statistics of inputs the factors approximate the kernel itself; with them, the layer's output.

    Args:
        kernel: the layer's kernel and bias.
        statistics: the statistics of the layer, or None.
        layer: the layer.
        rows_in_first: whether the first convolution has the rows of the kernel (see `low_rank`).
        rank: channels of a group after the first convolution.
        output_rank: channels of a group before the last convolution; by default, all outputs.

    Returns:
        The factors by group, and a bias of shape `(outputs,)`.
    """
    count = groups(layer)
    channels, outputs = layer.input_shape[-1] // count, layer.output_shape[-1] // count
    height, width = layer.kernel_size
    shape = (channels * height, width, outputs) if rows_in_first else (channels, height * width, outputs)
    moment = None
    if statistics is not None:
        # The best bias cancels the mean error, which leaves the covariance in place of the second moment.
        moment = statistics.covariance if layer.use_bias else statistics.moment
    factors, bias = [], kernel.bias.copy()
    for group in range(count):
        of_inputs = slice(group * channels, (group + 1) * channels)
        of_outputs = slice(group * outputs, (group + 1) * outputs)
        values = slice(of_inputs.start * height * width, of_inputs.stop * height * width)
        part = kernel.dense[of_inputs, :, of_outputs].reshape(shape)
        if statistics is None or moment is None:
            factors.append(low_rank.truncate(part, rank, output_rank))
            continue
        factors.append(low_rank.fit(part, moment[values, values], rank, output_rank))
        if layer.use_bias:
            bias[of_outputs] += statistics.mean[values] @ (part - factors[-1].kernel).reshape(-1, outputs)
    return factors, bias


def set_kernels(block: keras.Model, layer: Layer, suffix: str, kernels: list[Any], bias: np.ndarray | None) -> None:
    """Set the weights of a convolution of a block.

    Args:
        block: holds the convolution.
        layer: the layer that the block replaces.
        suffix: the suffix of the convolution's name.
        kernels: the kernels of each group, `(rows, columns, input channels of the group, output channels of the
            group)`.
        bias: the bias of the convolution, or None if it has none.
    """
    kernel = np.concatenate(kernels, axis=-1)
    block.get_layer(f"{layer.name}{suffix}").set_weights([kernel] if bias is None else [kernel, bias])
