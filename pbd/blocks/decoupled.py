"""Network decoupling (Guo et al. 2018): depthwise filters for each input channel, then one pointwise convolution."""

from typing import Any

import keras
import numpy as np

from pbd.blocks.activation import _activated
from pbd.blocks.decoupling import Factors
from pbd.blocks.seeds import derive_seed
from pbd.records import LayerTask

FILTERED, POINTWISE = "_pbd_filtered", "_pbd_pointwise"
"""What a decoupled block appends to its layer's name: for the filtered maps side by side, and for what mixes them."""


def decoupled(x: Any, task: LayerTask, seed: int, rank: int) -> Any:
    """`rank` depthwise filters for each input channel, side by side, then one pointwise convolution over them all.

    Never written as a depth multiplier: it has no fast kernel in any runtime. And not as separable branches that are
    added: a normalisation behind their sum cannot be folded into a convolution (figures: `experiments/README.md`).
    """
    name = f"{task.layer_name}_pbd"
    filtered = [
        keras.layers.DepthwiseConv2D(
            task.kernel_size,
            strides=task.strides,
            padding=task.padding,
            dilation_rate=task.dilation_rate,
            use_bias=False,
            depthwise_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, f"depthwise{number}")),
            name=f"{name}_depthwise{number}",
        )(x)
        for number in range(1, most_ranks(task, rank) + 1)
    ]
    x = filtered[0] if len(filtered) == 1 else keras.layers.Concatenate(name=f"{task.layer_name}{FILTERED}")(filtered)
    x = keras.layers.Conv2D(
        task.output_shape[-1],
        1,
        use_bias=task.use_bias,
        kernel_initializer=keras.initializers.HeNormal(seed=derive_seed(seed, name, "pointwise")),
        name=f"{task.layer_name}{POINTWISE}",
    )(x)
    return _activated(x, task)


def most_ranks(task: LayerTask, rank: int) -> int:
    """Return the rank, or that of a whole slice of the kernel where it is less: no more filters can help."""
    return min(rank, task.kernel_size[0] * task.kernel_size[1], task.output_shape[-1])


DECOUPLED_RANKS = {f"decoupled_r{rank}": rank for rank in (1, 2, 3)}


def set_factors(block: keras.Model, task: LayerTask, factors: Factors, bias: np.ndarray) -> None:
    """Give a decoupled block the factors of a kernel: its output is then that of the convolution they make.

    Args:
        block: made by `build_block` with a `decoupled` design of the factors' rank.
        task: its layer.
        factors: `(channels, positions, rank)` and `(channels, rank, outputs)`.
        bias: `(outputs,)`; left out where the layer has none.
    """
    name = f"{task.layer_name}_pbd"
    channels, _, rank = factors.depthwise.shape
    for number in range(rank):
        filters = factors.depthwise[:, :, number].T.reshape(*task.kernel_size, channels, 1)
        block.get_layer(f"{name}_depthwise{number + 1}").set_weights([filters])
    rows = factors.pointwise.transpose(1, 0, 2).reshape(1, 1, rank * channels, -1)
    block.get_layer(f"{task.layer_name}{POINTWISE}").set_weights([rows, bias] if task.use_bias else [rows])
