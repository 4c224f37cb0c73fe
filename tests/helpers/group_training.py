"""Training of groups in this process: contexts of new runs, and what their blocks have become."""

import dataclasses
import uuid
from typing import Any

import numpy as np

from pbd import blocks
from pbd.records import BlockResult, BlockTask, Progress, TaskGroup
from pbd.run_dir.journal import Journal

Tasks = list[BlockTask]


def ignore(_: Progress) -> None:
    """Take a progress event and do nothing."""


def changed(context: tuple[Any, Tasks], **training_settings: Any) -> Any:
    """Return the context of a new run with other settings: `block`, `block_init`, `train_limit`, or of the training."""
    base = context[0]
    journal = Journal.create(base.journal.path.parent / uuid.uuid4().hex, {})
    fields = {name: training_settings.pop(name) for name in ("block_init",) if name in training_settings}
    if (limit := training_settings.pop("train_limit", None)) is not None:
        fields["data"] = dataclasses.replace(base.data, train_limit=limit)
    if (block := training_settings.pop("block", None)) is not None:
        fields["designs"] = {block: blocks.get(block)}
    return dataclasses.replace(
        base, training=dataclasses.replace(base.training, **training_settings), journal=journal, **fields
    )


def train(context: Any, tasks: Tasks) -> dict[str, BlockResult]:
    """Train these tasks as one group; return the results by layer."""
    from pbd.blockwise import train_group

    return {r.layer: r for r in train_group.train_group(context, group_of(context, tasks), ignore)}


def committed(context: Any) -> set[str]:
    """Return the layers whose blocks are in the run directory."""
    return {key.layer for key in context.journal.committed_blocks()}


def group_of(context: Any, tasks: Tasks) -> TaskGroup:
    """Return the group of these tasks with the context's design."""
    (design,) = context.designs
    return TaskGroup(tuple(dataclasses.replace(task, design=design) for task in tasks))


def assert_same_weights(one: BlockResult, other: BlockResult, atol: float = 0.0) -> None:
    """Check that the weights of two blocks have the same names, and differ by `atol` at most."""
    assert one.weights.keys() == other.weights.keys()
    for key, value in one.weights.items():
        np.testing.assert_allclose(value, other.weights[key], rtol=0.0, atol=atol, err_msg=key)
