"""Network decoupling (Guo et al. 2018): depthwise filters for each input channel, then one pointwise convolution."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pbd.blocks import decoupled_forms, depthwise
from pbd.blocks.activation import activated
from pbd.blocks.decoupled_forms import FILTERED, POINTWISE, depthwise_name
from pbd.blocks.decoupling import Factors
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.initialisation import Statistics, initial_factors
from pbd.blocks.seeds import derive_seed
from pbd.records import Layer


@dataclass(frozen=True)
class Decoupled(BlockDesign):
    """`rank` depthwise filters for each input channel, concatenated, then one pointwise convolution over all of them.

    The initial weights are the decoupled kernel of the layer; bias and activation are the layer's. The filters of one
    channel are separate depthwise layers, since no runtime has a fast kernel for a depth multiplier. Their maps are
    concatenated and not added as separable branches, since a batch normalisation behind a sum cannot be folded.
    """

    rank: int
    name: str = field(init=False)
    per_image = True
    needs_inputs = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"decoupled_r{self.rank}")

    def applies_to(self, layer: Layer) -> str | None:
        return depthwise.cannot_replace(layer)

    def unprofitable(self, layer: Layer) -> str | None:
        return depthwise.slow_for(layer)

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        name = f"{layer.name}_pbd"
        filtered = [
            keras.layers.DepthwiseConv2D(
                layer.kernel_size,
                strides=layer.strides,
                padding=layer.padding,
                dilation_rate=layer.dilation_rate,
                data_format=layer.data_format,
                use_bias=False,
                depthwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, f"depthwise{number}")),
                dtype=layer.dtype,
                name=depthwise_name(layer.name, number),
            )(x)
            for number in range(1, effective_rank(layer, self.rank) + 1)
        ]
        x = filtered[0]
        if len(filtered) > 1:
            x = keras.layers.Concatenate(axis=-1, dtype=layer.dtype, name=f"{layer.name}{FILTERED}")(filtered)
        x = keras.layers.Conv2D(
            layer.output_shape[-1],
            1,
            data_format=layer.data_format,
            use_bias=layer.use_bias,
            kernel_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "pointwise")),
            dtype=layer.dtype,
            name=f"{layer.name}{POINTWISE}",
        )(x)
        return activated(x, layer)

    def initialise(self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: Statistics | None) -> None:
        factors, bias = initial_factors(kernel, statistics, effective_rank(layer, self.rank), layer.use_bias)
        set_factors(block, layer, factors, bias)

    def for_inference(self, model: keras.Model) -> keras.Model:
        return decoupled_forms.add_instead_of_concatenate(model)

    def for_int8(self, model: keras.Model) -> keras.Model:
        return decoupled_forms.for_int8(model)


DESIGNS = tuple(Decoupled(rank) for rank in (1, 2, 3))


def effective_rank(layer: Layer, rank: int) -> int:
    """Return `rank`, but at most the full rank of a slice of the kernel: more filters cannot help."""
    return min(rank, layer.kernel_size[0] * layer.kernel_size[1], layer.output_shape[-1])


def set_factors(block: keras.Model, layer: Layer, factors: Factors, bias: np.ndarray) -> None:
    """Set the weights of a decoupled block so that it computes the convolution given by the factors.

    Args:
        block: built by a `Decoupled` design of the factors' rank.
        layer: the layer that the block replaces.
        factors: `(channels, positions, rank)` and `(channels, rank, outputs)`.
        bias: `(outputs,)`; ignored if the layer has none.
    """
    channels, _, rank = factors.depthwise.shape
    for number in range(rank):
        filters = factors.depthwise[:, :, number].T.reshape(*layer.kernel_size, channels, 1).astype(np.float32)
        block.get_layer(depthwise_name(layer.name, number + 1)).set_weights([filters])
    rows = factors.pointwise.transpose(1, 0, 2).reshape(1, 1, rank * channels, -1).astype(np.float32)
    block.get_layer(f"{layer.name}{POINTWISE}").set_weights(
        [rows, bias.astype(np.float32)] if layer.use_bias else [rows]
    )
