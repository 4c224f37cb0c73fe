"""Records of the work of a run: layers, tasks, assignments, results, progress."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np


class BlockKey(NamedTuple):
    """The key of results and journal entries: a layer and the block design that replaces it."""

    layer: str
    design: str

    def __str__(self) -> str:
        return f"{self.layer}@{self.design}"

    @classmethod
    def parse(cls, text: str) -> "BlockKey":
        """Return the key that `str` turned into this text."""
        layer, _, design = text.rpartition("@")
        return cls(layer, design)


CONVOLUTION, RESIDUAL = "convolution", "residual"
"""Kinds of layers."""


@dataclass(frozen=True)
class Layer:
    """A part of the teacher that a block can replace: a convolution with a kernel other than 1x1, or a residual block.

    Shapes exclude the batch axis; multiply-accumulates are per image. The kernel size, the strides and so on of a
    residual block are those of the convolution that can replace it.
    """

    index: int
    """Position among the layers, in graph order, from 0."""
    name: str
    """The name of the convolution; of a residual block, the name of its addition."""
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    dilation_rate: tuple[int, int]
    padding: str
    activation: dict[str, Any] | str = field(hash=False)  # a dictionary has no hash
    """The layer's own activation, serialised by Keras."""
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    prefix_macs: int
    """Multiply-accumulates of all layers that must run to compute this layer's output, including this layer."""
    macs: int
    """Multiply-accumulates of the layer, per call."""
    params: int
    """Number of parameters of the layer."""
    use_bias: bool = False
    data_format: str = "channels_last"
    dtype: str = "float32"
    """Name of the layer's dtype policy."""
    kind: str = CONVOLUTION
    """`CONVOLUTION` or `RESIDUAL`."""
    inside: tuple[str, ...] = ()
    """The residual blocks, among the layers, that contain it."""
    producer: str = ""
    """The convolution whose filters only this layer reads, so that those that a block does not read can be removed."""

    def without_place(self) -> "Layer":
        """Return the record without its name and place in the network: equal for layers whose blocks are alike."""
        return replace(self, index=0, name="layer", prefix_macs=0, inside=(), producer="")


@dataclass(frozen=True)
class BlockTask:
    """A block to train: a layer and the design that replaces it."""

    layer: Layer
    design: str
    """Name of the block design."""
    macs: int
    """Multiply-accumulates of the block, per image; 0 if it cannot be built."""
    params: int
    """Number of parameters of the block; 0 if it cannot be built."""
    skip_reason: str | None = None
    """Why no block is trained for this layer; `None` if one is trained."""

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.layer.name, self.design)


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that are trained together: one forward pass of the teacher, up to the deepest layer, serves all blocks."""

    tasks: tuple[BlockTask, ...]
    predicted_s: float | None = field(default=None, compare=False)
    """Predicted training time in seconds."""
    attempt: int = field(default=1, compare=False)
    """Number of this attempt, from 1; see `scheduling.retry`."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a task group holds at least one task. Received: none.")
        keys = [task.key for task in self.tasks]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a task group holds a task once. Received: {', '.join(map(str, keys))}.")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers of its tasks, each once."""
        return tuple(dict.fromkeys(task.layer.name for task in self.tasks))


@dataclass(frozen=True)
class Assignment:
    """Which worker trains which groups, in which order. (The word schedule is kept for learning rates.)"""

    scheduler: str
    """Name of the scheduler that made the assignment."""
    queues: tuple[tuple[TaskGroup, ...], ...]
    """For each worker, its groups in the order of training."""
    predicted_load_s: tuple[float, ...]
    """For each worker, its predicted training time in seconds."""
    pool: tuple[TaskGroup, ...] = ()
    """Groups that are handed out in this order, each to the next worker that is free."""
    steals: bool = False
    """Whether a worker with an empty queue takes groups from the queues of other workers."""
    shared: bool = False
    """Whether all workers train the groups of the first queue together, each on its part of every batch."""

    @property
    def predicted_makespan_s(self) -> float:
        return max(self.predicted_load_s, default=0.0)

    @property
    def groups(self) -> tuple[TaskGroup, ...]:
        """All groups, in queues and in the pool."""
        return (*(group for queue in self.queues for group in queue), *self.pool)


@dataclass(frozen=True)
class BlockResult:
    """The result of one task. A failed block is a result with status `failed`, not an exception."""

    layer: str
    """Name of the layer."""
    status: str
    """`trained` or `failed`."""
    design: str
    """Name of the block design."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """The block's weights by `layer name/variable name`; empty if it failed."""
    loss_history: tuple[float, ...] = ()
    """Mean squared error on the training batches, per epoch."""
    nmse_history: tuple[float, ...] = ()
    """Normalised error, as in `nmse`, on the images for early stopping, before training and after each epoch;
    empty if the block was not trained."""
    nmse: float | None = None
    """Mean squared error on the validation split, divided by the variance of the layer's output."""
    val_accuracy: float | None = None
    """Validation accuracy of the teacher with only this block swapped in; `None` without labels."""
    val_agreement: float | None = None
    """Fraction of the validation images for which that network predicts the same class as the teacher."""
    val_kl: float | None = None
    """Mean Kullback-Leibler divergence of its class probabilities from the teacher's, in nats."""
    worker: int | None = None
    """The worker that trained it, from 0; if several did, the first."""
    started_s: float = 0.0
    """Start of its group, in seconds since the start of the block phase."""
    seconds: float = 0.0
    """Wall-clock seconds that its group took; the same for every block of the group."""
    predicted_s: float | None = None
    """Predicted training time of its group, in seconds."""
    energy_j: float | None = None
    """Its share, in joules, of the energy that its worker used during the group; `None` if it was not measured."""
    peak_bytes: int | None = None
    """Peak memory of its worker up to the end of its group; if several trained it, the largest."""
    error: str | None = None
    """Why it failed; `None` if it was trained."""
    shared: bool = False
    """Whether all workers trained it together, each on its part of every batch."""
    attempts: int = 1
    """How often its training was started; more than once if a process was lost during training."""
    from_journal: bool = False
    """Whether the run directory already held it, so that its times are those of an earlier attempt."""

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.layer, self.design)

    @property
    def score(self) -> float | None:
        """The measure that choices are made by: accuracy or, without labels, agreement with the teacher."""
        return self.val_agreement if self.val_accuracy is None else self.val_accuracy


@dataclass(frozen=True)
class Progress:
    """The progress of one worker in its current activity, sent after every step of it, or before."""

    worker: int
    label: str
    """The current activity: the layer or layers being trained, `scoring`, …"""
    done: int
    """Finished steps of the current activity."""
    total: int
    """All of its steps; 0 if their number is not known."""
    epoch: int = 0
    """Current epoch, from 1."""
    loss: float | None = None
    """Summed mean squared error of the group's blocks."""


ProgressCallback = Callable[[Progress], None]
"""Called with the progress of a worker."""


def no_progress(event: Progress) -> None:
    """Take the progress of a worker, and do nothing."""
