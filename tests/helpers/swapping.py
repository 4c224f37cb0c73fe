"""Networks with blocks in the place of layers, for tests."""

import functools
from collections.abc import Iterable

import keras

from pbd import blocks
from pbd.networks import graph
from pbd.records import BlockTask


def swap_blocks(model: keras.Model, tasks: Iterable[BlockTask], seed: int = 0) -> keras.Model:
    """Return a copy of the model with a new block of each task's design in the place of its layer."""
    builders = {
        task.layer.name: functools.partial(blocks.get(task.design).build, layer=task.layer, seed=seed) for task in tasks
    }
    return graph.swap(model, builders)
