"""Assemble the student from the teacher and the accepted blocks."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from pbd import blocks
from pbd.networks import channels, graph
from pbd.networks.keras_internals import producer
from pbd.records import BlockResult, BlockTask


def assemble(teacher: keras.Model, tasks: Iterable[BlockTask], accepted: Mapping[str, BlockResult]) -> keras.Model:
    """Return a copy of the teacher with the accepted blocks in place of their layers, without channels nothing reads.

    Args:
        teacher: Flat and functional.
        tasks: The tasks of the run; they say how a block is built.
        accepted: The blocks to use, by layer.
    """
    return channels.remove_unread(swap_blocks(teacher, tasks, accepted)[0])


def swap_blocks(
    teacher: keras.Model, tasks: Iterable[BlockTask], accepted: Mapping[str, BlockResult]
) -> tuple[keras.Model, dict[str, str]]:
    """Return the student with all channels, and by replaced layer the name of the operation that ends its block.

    Args:
        teacher: see `assemble`.
        tasks: see `assemble`.
        accepted: see `assemble`.
    """
    ends: dict[str, str] = {}

    def builder(task: BlockTask) -> graph.Builder:
        def build(x: Any) -> Any:
            output = blocks.get(task.design).build(x, layer=task.layer, seed=0)
            ends[task.layer.name] = producer(output)[0].name
            return output

        return build

    builders = {
        task.layer.name: builder(task)
        for task in tasks
        if task.layer.name in accepted and accepted[task.layer.name].design == task.design
    }
    student = graph.swap(teacher, builders)
    for result in accepted.values():
        blocks.set_weights(student, result.weights)
    if selections := blocks.constant_selections(student):
        student = graph.swap(student, selections)
    return student, ends
