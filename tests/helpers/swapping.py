"""Networks with blocks in the place of layers, for tests."""

import functools
from collections.abc import Iterable

import keras

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import graph
from pbd.records import BlockTask


def swap_blocks(model: keras.Model, tasks: Iterable[BlockTask], seed: int = 0) -> keras.Model:
    """Return a copy of the model with a new block of each task's design in the place of its layer."""
    builders = {
        task.layer.name: functools.partial(blocks.get(task.design).build, layer=task.layer, seed=seed) for task in tasks
    }
    return graph.swap(model, builders)


def swap_all(model: keras.Model, design: str) -> keras.Model:
    """Return a copy of a flat model with a new block in the place of every convolution that the design can replace."""
    tasks = enumerate_tasks(model, blocks.get(design), include_unprofitable=True)
    return swap_blocks(model, [task for task in tasks if task.skip_reason is None])
