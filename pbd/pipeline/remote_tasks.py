"""Tasks that all workers of a run execute at the same time, as a collective. They are picklable."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import keras
import numpy as np

from pbd import blocks
from pbd.blockwise.context import TrainingContext, load, teacher_outputs
from pbd.blockwise.train_group import train_group
from pbd.collective import Collective
from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset, IndexedSplit, WorkerShare
from pbd.deploy.int8.fake_quantization import FakeQuantization
from pbd.errors import MissingInputError
from pbd.learning import class_counts, teacher_table
from pbd.learning.class_counts import ClassCounts
from pbd.learning.metrics import Metrics, evaluate
from pbd.networks import files
from pbd.records import BlockResult, BlockTask, ProgressCallback, TaskGroup
from pbd.run_dir import error_files
from pbd.student import refitted_damages
from pbd.student.adaptation import Adapted, adapt
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.fine_tuning import fine_tune
from pbd.system import initial_values, random_state

CHECKPOINTS = "fine_tuning"
"""The folder of the run directory that holds fine-tuning checkpoints until the run is complete."""
Call = TypeVar("Call", bound=Callable[..., Any])


def _recorded(call: Call) -> Call:
    """Decorate the `__call__` of a task: a worker writes an unexpected exception to the run directory."""

    @functools.wraps(call)
    def recording(task: Any, collective: Collective, emit: ProgressCallback) -> Any:
        with error_files.recorded(task.context.journal, type(task).__name__, collective.index):
            return call(task, collective, emit)

    return cast(Call, recording)


@dataclass(frozen=True)
class TrainGroupTask:
    """Train one group of blocks; each worker trains on its part of every batch."""

    context: TrainingContext
    group: TaskGroup

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> list[BlockResult]:
        """Return one result per block."""
        start = time.monotonic()
        results = train_group(self.context, self.group, emit, collective)
        seconds = time.monotonic() - start
        return [
            replace(
                result,
                worker=0,  # reports for all workers
                shared=True,
                predicted_s=self.group.predicted_s,
                seconds=result.seconds if result.from_journal else seconds,
            )
            for result in results
        ]


@initial_values.on_host()
def _loaded(path: Path) -> keras.Model:
    return files.read(path)


@dataclass(frozen=True)
class AdaptTask:
    """Adapt a student to its own feature maps; each worker processes some of the batches."""

    context: TrainingContext
    student: Path
    """The student's file, in the run directory."""
    ends: Mapping[str, str]
    """See `adaptation.adapt`."""

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> tuple[list[np.ndarray], Adapted]:
        """Return the student's weights, and its metrics."""
        teacher, dataset = load(self.context)
        student = _loaded(self.student)
        part = dataset.shared(WorkerShare(collective.index, collective.size))
        adapted = adapt(student, teacher, self.ends, part, collective, emit)
        return student.get_weights(), adapted


Measure = Callable[[keras.Model, keras.Model, Dataset, Collective], Any]
"""Compares a network with a teacher; each member of the collective, which has the whole data, measures its part."""


@dataclass(frozen=True)
class MeasureTask:
    """Measure a network on all workers."""

    context: TrainingContext
    model: Path
    """Its file, in the run directory."""
    measure: Measure

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> Any:
        """Return what `measure` returns."""
        teacher, dataset = load(self.context)
        return self.measure(_loaded(self.model), teacher, dataset, collective)


@dataclass(frozen=True)
class RefittedDamagesTask:
    """Measure blocks of the run directory, each with the convolutions behind it refitted."""

    context: TrainingContext
    tasks: tuple[BlockTask, ...]
    """The tasks of the blocks."""

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> list[float]:
        """Return the divergence of the teacher with each block."""
        teacher, dataset = load(self.context)
        results = [self.context.journal.committed_block(task.key) for task in self.tasks]
        readable = [result for result in results if result is not None]
        if len(readable) < len(results):
            raise MissingInputError(
                "every worker must see the blocks of the run directory. "
                f"Received: {len(readable)} of {len(results)} readable. "
                "Give a --run-dir on storage that all hosts share."
            )
        part = dataset.shared(WorkerShare(collective.index, collective.size))
        return refitted_damages.divergences(teacher, self.tasks, readable, part, collective, emit)


@dataclass(frozen=True)
class FineTuneTask:
    """Fine-tune a student; each worker trains on its part of every batch."""

    context: TrainingContext
    student: Path
    """The student's file, in the run directory."""
    settings: StudentConfig
    initial: Metrics
    """The student's validation metrics before fine-tuning."""
    first_epoch: int
    """The epoch of the data with which to start."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """What the student learns from besides logits and labels."""
    start: str = ""
    """If not empty, a checkpoint is that of this task only if its training began with the same `start`."""
    quantization: FakeQuantization | None = None
    """If given, a copy of the student with this fake quantisation is trained, without labels."""

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> FineTuneState:
        """Return the final state; it holds the best weights."""
        teacher, dataset = load(self.context)
        random_state.seed(blocks.derive_seed(self.context.seed, "student"))  # for layers such as dropout
        student = _loaded(self.student)
        if self.quantization is not None:
            student, dataset = self.quantization.applied(student), replace(dataset, labelled=False)
        return fine_tune(
            student,
            teacher,
            dataset,
            self.settings,
            self.initial,
            emit,
            self.first_epoch,
            collective,
            self._checkpoint(student, collective),
            self.distillation,
            self._precision,
        )

    @property
    def _precision(self) -> str:
        """The precision of the settings; float32 in place of float16, and with fake quantisation.

        In float16 losses would have to be scaled, and gradients of several workers would not add up. The steps of fake
        quantisation are finer than those of half precision.
        """
        precision = self.context.training.precision
        return "float32" if self.quantization is not None or precision == "float16" else precision

    def _checkpoint(self, student: keras.Model, collective: Collective) -> CheckpointFile:
        """Return this task's checkpoint.

        A run can fine-tune several students. They differ in their layers, in the shapes of their weights, in their
        first epoch, in the settings or in `start`, so a digest of these names the file, and of the settings of the
        run: a worker of an earlier run in a directory of this name may write its own. Beside `start`, the names of
        layers do not count: a network that is built again has others.
        """
        layers = [
            ("" if self.start else layer.name, layer.trainable, [weight.shape for weight in layer.get_weights()])
            for layer in student.layers
        ]
        settings = asdict(self.settings), asdict(self.distillation), self._precision, self.first_epoch
        quantization = None if self.quantization is None else asdict(self.quantization)
        identity = [layers, settings, quantization, self.start, self.context.journal.settings_digest]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return CheckpointFile(self.context.journal, f"{CHECKPOINTS}/{digest[:16]}.npz", collective)


@dataclass(frozen=True)
class EvaluateTask:
    """Evaluate networks on a split; each worker processes some of the batches."""

    context: TrainingContext
    models: tuple[Path, ...]
    split: str
    by_class: bool = False
    """Also count the answers of the teacher and of the last network, class by class, if there are labels and not too
    many classes."""
    limit: int | None = None
    """Evaluate on this many images (see `Dataset.batches`)."""

    @_recorded
    def __call__(self, collective: Collective, emit: ProgressCallback) -> tuple[list[Metrics], ClassCounts | None]:
        """Return the metrics of each network, in the order of `models`, and the counts."""
        teacher, dataset = load(self.context)
        # The teacher object itself, if it is among them, so that its outputs are computed once.
        models = [teacher if str(p) == self.context.teacher_path else _loaded(p) for p in self.models]
        share = WorkerShare(collective.index, collective.size)
        batches, kept = dataset.shared(share).batches(self.split, self.limit), self._kept(teacher, dataset, share)
        counts, classes = None, max(2, teacher.outputs[0].shape[-1])  # a single output is the score of one of two
        if self.by_class and dataset.labelled and classes <= class_counts.MOST_CLASSES:
            counts = ClassCounts(classes)
        return evaluate(teacher, models, batches, dataset.labelled, collective, counts, kept), counts

    def _kept(self, teacher: keras.Model, dataset: Dataset, share: WorkerShare) -> list[np.ndarray] | None:
        """Return the list in which the teacher's outputs for these batches are kept; `None` if they are too many."""
        split, data, classes = getattr(dataset, self.split), self.context.data, teacher.outputs[0].shape[-1]
        images = min(self.limit or len(split), len(split)) // share.count
        if not isinstance(split, IndexedSplit) or images * classes > teacher_table.MOST_VALUES:
            return None
        same_images = replace(data, split_seed=data.seed_of_splits(self.context.seed))
        of_session = teacher_outputs(self.context.teacher_path, self.context.session)
        return of_session.setdefault((same_images, self.split, self.limit, share), [])
