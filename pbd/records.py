"""What passes between the parts of pbd: frozen records, plain data, no TensorFlow, no MPI."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class BlockKey(NamedTuple):
    """What results, journal entries and report rows are keyed by: one design in the place of one layer."""

    layer: str
    design: str

    def __str__(self) -> str:
        return f"{self.layer}@{self.design}"


@dataclass(frozen=True)
class Layer:
    """One convolution of the teacher with a kernel other than 1x1.

    Shapes exclude the batch axis; multiply-accumulates are per image.
    """

    index: int
    """Its place among the convolutions, in graph order."""
    name: str
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    dilation_rate: tuple[int, int]
    padding: str
    activation: dict[str, Any] | str
    """The layer's own activation, as Keras serialises it."""
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    prefix_macs: int
    """Of every layer that must run to produce this layer's output, this layer included."""
    macs: int
    params: int
    use_bias: bool = False
    data_format: str = "channels_last"
    dtype: str = "float32"
    """Name of the layer's dtype policy."""


@dataclass(frozen=True)
class BlockTask:
    """A block to train: one design in the place of one layer."""

    layer: Layer
    design: str
    """Name of the block design."""
    macs: int
    """Of the block, per image; 0 if it cannot be built."""
    params: int
    skip_reason: str | None = None
    """Why no block is trained for this layer; None if one is."""

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.layer.name, self.design)


@dataclass(frozen=True)
class TaskGroup:
    """Tasks trained in one pass: one forward of the teacher, as deep as the deepest, feeds every block."""

    tasks: tuple[BlockTask, ...]
    predicted_s: float | None = field(default=None, compare=False)
    """What training it is predicted to take, in seconds."""
    attempt: int = field(default=1, compare=False)
    """Which attempt at its tasks this is; see `scheduling.attempts`."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a task group holds at least one task. Received: none.")
        if len(set(self.layer_names)) < len(self.tasks):
            raise ValueError(f"a task group holds one task per layer. Received: {', '.join(self.layer_names)}.")

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(task.layer.name for task in self.tasks)


@dataclass(frozen=True)
class Assignment:
    """Which worker trains which groups, in which order (never called a schedule: that is a learning rate's)."""

    scheduler: str
    queues: tuple[tuple[TaskGroup, ...], ...]
    """For each worker, its groups in run order."""
    predicted_load_s: tuple[float, ...]
    """For each worker, the seconds it is predicted to train."""
    pool: tuple[TaskGroup, ...] = ()
    """Groups that go, in this order, to whichever worker comes free."""
    steals: bool = False
    """Whether a worker with nothing left takes groups from the queues of others."""
    shared: bool = False
    """Whether all workers train the first queue's groups together, each on its part of every batch."""

    @property
    def predicted_makespan_s(self) -> float:
        return max(self.predicted_load_s, default=0.0)

    @property
    def groups(self) -> tuple[TaskGroup, ...]:
        """All groups, whoever trains them."""
        return (*(group for queue in self.queues for group in queue), *self.pool)


@dataclass(frozen=True)
class BlockResult:
    """The outcome of one task. A block that failed is data, not an exception."""

    layer: str
    """Name of the layer."""
    status: str
    """`trained` or `failed`."""
    design: str
    """Name of the block design."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """The block's weights, by layer and variable name."""
    loss_history: tuple[float, ...] = ()
    """Mean squared error on the training batches, per epoch."""
    nmse_history: tuple[float, ...] = ()
    """Normalised error on some validation images, before training and after every epoch."""
    nmse: float | None = None
    """Mean squared error on the validation split, divided by the variance of the target."""
    val_accuracy: float | None = None
    """Validation accuracy of the teacher with only this block swapped in; `None` without labels."""
    val_agreement: float | None = None
    """Share of the validation images to which it gives the same answer as the teacher."""
    val_kl: float | None = None
    """Mean divergence of its outputs from the teacher's, in nats."""
    worker: int | None = None
    started_s: float = 0.0
    """When its group began, in seconds since the block phase began."""
    seconds: float = 0.0
    """Wall time of its group, shared by every block of the group."""
    predicted_s: float | None = None
    """What its group was predicted to take."""
    energy_j: float | None = None
    """Its part of what its worker spent meanwhile; `None` where that is not measured."""
    peak_bytes: int | None = None
    """The most memory that its worker had held by the end of its group; of several, the one that held most."""
    error: str | None = None
    shared: bool = False
    """All workers trained it together, each on its part of every batch; `worker` is the first of them."""
    attempts: int = 1
    """How often its training was begun: again where the process that trained it was lost."""
    from_journal: bool = False
    """It lay in the run directory already when it was asked for, so that its times are not this worker's."""

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.layer, self.design)

    @property
    def score(self) -> float | None:
        """What the block is judged by: the accuracy or, without labels, the agreement with the teacher."""
        return self.val_agreement if self.val_accuracy is None else self.val_accuracy


@dataclass(frozen=True)
class Progress:
    """Where one worker stands; sent while it trains."""

    worker: int
    label: str
    """What is being done: the layer or layers trained, `scoring`, …"""
    done: int
    total: int
    """Steps done, and steps in all, of the group being trained."""
    epoch: int = 0
    loss: float | None = None
    """Summed mean squared error of the group's blocks."""


ProgressCallback = Callable[[Progress], None]
"""Receives the progress of a worker."""


@dataclass(frozen=True)
class ModelFacts:
    """Size, cost and quality of a network; accuracies (`None` without labels) and agreements lie in [0, 1]."""

    params: int
    macs: int
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    path: str | None = None
    size_bytes: int | None = None
    val_agreement: float | None = None
    """Share of the images to which it gives the teacher's answer."""
    test_agreement: float | None = None
    val_kl: float | None = None
    """Mean divergence of its outputs from the teacher's, in nats."""
    test_kl: float | None = None


@dataclass(frozen=True)
class BlockReport:
    """One row of the report: the decision about one layer, and what it rests on."""

    layer: str
    status: str
    """`accepted`, `rejected`, `given_back`, `skipped` or `failed`."""
    reason: str
    block: str | None
    worker: int | None
    started_s: float | None
    seconds: float | None
    nmse: float | None
    val_accuracy: float | None
    val_agreement: float | None
    val_kl: float | None
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    loss_history: tuple[float, ...] = ()
    nmse_history: tuple[float, ...] = ()
    predicted_s: float | None = None
    """What `seconds` was predicted to be."""
    attempts: int = 1
    """How often its training was begun: again where the process that trained it was lost."""
    energy_j: float | None = None
    """Its part of what its worker spent meanwhile; `None` where that is not measured."""


@dataclass(frozen=True)
class WorkerReport:
    """How long a worker was busy in the block phase, how long it waited for the slowest, and the joules of both."""

    worker: int
    busy_s: float
    idle_s: float
    peak_bytes: int | None = None
    """The most memory that it held until it was done: its device's, on an accelerator, else the host's."""
    busy_j: float | None = None
    """An equal part of what its host spent, whatever each worker did; `None` where that is not measured."""
    idle_j: float | None = None


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of the run's phases."""

    teacher_s: float
    calibrate_s: float
    distill_s: float
    predicted_makespan_s: float
    predicted_from: str
    """What the prediction rests on."""
    fine_tune_s: float
    total_s: float


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass, teacher and student in turn on one device; medians and quartiles over the rounds."""

    batch: int
    """Images in a pass."""
    teacher_s: float
    teacher_q1_s: float
    teacher_q3_s: float
    student_s: float
    student_q1_s: float
    student_q3_s: float
    times_as_fast: float
    """The median over the rounds of the teacher's time over the student's."""
    rounds: int
    passes: int
    """Counted passes of each network in a round, whose median is the round's figure."""


@dataclass(frozen=True)
class RunReport:
    """Everything that `report.json` says (version 1)."""

    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: ModelFacts
    assembled: ModelFacts
    student: ModelFacts
    blocks: tuple[BlockReport, ...]
    workers: tuple[WorkerReport, ...]
    timing: Timing
    energy: dict[str, Any]
    executor: str
    scheduler: str
    groups: tuple[tuple[str, ...], ...]
    reference: str = "labels"
    """What every choice and accuracy rests on: `labels`, or `teacher` (agreement with it) where there are none."""
    fine_tune_history: tuple[dict[str, float], ...] = ()
    events: tuple[str, ...] = ()
    """What happened to the student besides: learning rates stepped back, layers given back, in order."""
    run_dir: str = ""
    latency: tuple[Latency, ...] = ()
    """For each batch size that was measured, how fast the student is; none in reports of older versions."""
    version: int = 1

    @property
    def failed_blocks(self) -> tuple[BlockKey, ...]:
        return tuple(BlockKey(row.layer, row.block or "") for row in self.blocks if row.status == "failed")
