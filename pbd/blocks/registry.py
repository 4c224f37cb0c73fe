"""Block designs by name."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from pbd.blocks.decoupled import DECOUPLED_RANKS, decoupled
from pbd.blocks.separable import three_layer, three_layer_skip, two_layer, two_layer_skip
from pbd.records import LayerTask

BlockBuilder = Callable[[Any, LayerTask, int], Any]
"""Maps (input tensor, task, seed) to an output tensor; the layers it makes are named after the task's layer."""


BLOCKS: dict[str, BlockBuilder] = {
    **{name: functools.partial(decoupled, rank=rank) for name, rank in DECOUPLED_RANKS.items()},
    "two_layer": two_layer,
    "three_layer": three_layer,
    "two_layer_skip": two_layer_skip,
    "three_layer_skip": three_layer_skip,
}


def build_block(block: str, task: LayerTask, seed: int) -> keras.Model:
    """Return the block as a model of its own, from `task.input_shape` to `task.output_shape`."""
    inputs = keras.Input(task.input_shape)
    return keras.Model(inputs, BLOCKS[block](inputs, task, seed), name=f"{task.layer_name}_pbd_block")
