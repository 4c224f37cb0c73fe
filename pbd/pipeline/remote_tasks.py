"""What all workers of a run do together, as pieces of work that can be sent to them."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np

from pbd import blocks
from pbd.blockwise.context import TrainingContext, load
from pbd.blockwise.train_group import train_group
from pbd.collective import Collective
from pbd.config import StudentConfig
from pbd.data import WorkerShare
from pbd.learning import metrics
from pbd.learning.metrics import Metrics
from pbd.records import BlockResult, ProgressCallback, TaskGroup
from pbd.student import fine_tuning
from pbd.student.assemble import recalibrate_and_evaluate
from pbd.student.checkpoints import CheckpointFile
from pbd.student.fine_tuning import Tuning
from pbd.system import random_state

CHECKPOINTS = "fine_tuning"
"""The folder of the run directory where tunings are kept until the run is complete."""
EXCHANGES = 7
"""How often an exchange is timed; the median counts."""


@dataclass(frozen=True)
class TrainGroupTask:
    """Train one group, each worker on its part of every batch."""

    context: TrainingContext
    group: TaskGroup

    def __call__(self, collective: Collective, emit: ProgressCallback) -> list[BlockResult]:
        began = time.monotonic()
        results = train_group(self.context, self.group, emit, collective)
        seconds = time.monotonic() - began
        stamp = {"worker": 0, "shared": True, "predicted_s": self.group.predicted_s}
        return [replace(r, **stamp, seconds=r.seconds if r.from_journal else seconds) for r in results]


@dataclass(frozen=True)
class RecalibrateTask:
    """Re-estimate the batch statistics of the student in a file and mark it, each worker on some of the batches."""

    context: TrainingContext
    student: Path

    def __call__(self, collective: Collective, emit: ProgressCallback) -> tuple[list[np.ndarray], Metrics]:
        """Return the student's weights and its marks on the validation split."""
        teacher, dataset = load(self.context)
        model = keras.models.load_model(self.student, compile=False)
        marks = recalibrate_and_evaluate(
            model, teacher, dataset.shared(WorkerShare(collective.index, collective.size)), collective
        )
        return model.get_weights(), marks


@dataclass(frozen=True)
class FineTuneTask:
    """Fine-tune the student in a file, each worker on its part of every batch."""

    context: TrainingContext
    student: Path
    settings: StudentConfig
    before: Metrics
    first_epoch: int

    def __call__(self, collective: Collective, emit: ProgressCallback) -> tuple[list[np.ndarray], Tuning]:
        """Return the student's weights and what came of it."""
        teacher, dataset = load(self.context)
        random_state.seed(blocks.derive_seed(self.context.seed, "student"))  # for layers such as dropout
        model = keras.models.load_model(self.student, compile=False)
        tuning = fine_tuning.fine_tune(
            model,
            teacher,
            dataset,
            self.settings,
            self.before,
            emit,
            self.first_epoch,
            collective,
            self._checkpoint(model, collective),
        )
        return model.get_weights(), tuning

    def _checkpoint(self, model: keras.Model, collective: Collective) -> CheckpointFile:
        """Return where this tuning is kept; other tunings of a run have other layers, or begin at another epoch."""
        layers = [(layer.name, layer.trainable) for layer in model.layers]
        what = [layers, self.first_epoch, asdict(self.settings)]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return CheckpointFile(self.context.journal, f"{CHECKPOINTS}/{digest[:16]}.npz", collective)


@dataclass(frozen=True)
class EvaluateTask:
    """Mark networks on a split, each worker on some of its batches."""

    context: TrainingContext
    models: tuple[Path, ...]
    split: str

    def __call__(self, collective: Collective, emit: ProgressCallback) -> list[Metrics]:
        """Return the marks of each network."""
        teacher, dataset = load(self.context)
        models = [teacher if str(p) == self.context.teacher_path else keras.models.load_model(p) for p in self.models]
        batches = dataset.shared(WorkerShare(collective.index, collective.size)).batches(self.split)
        return metrics.evaluate(teacher, models, batches, dataset.labelled, collective)


@dataclass(frozen=True)
class AllReduceBenchmark:
    """Measure what adding up takes, once all have loaded, at the same time, what they will train with."""

    context: TrainingContext
    values: int
    """How many float32 numbers each worker brings."""

    def __call__(self, collective: Collective, emit: ProgressCallback) -> float:
        """Return the median seconds of an exchange."""
        load(self.context)
        brought, taken = np.ones(self.values, np.float32), []
        for _ in range(EXCHANGES):
            collective.all_reduce_sum(np.zeros(1))  # all begin at once
            began = time.perf_counter()
            collective.all_reduce_sum(brought)
            taken.append(time.perf_counter() - began)
        return float(np.median(taken))
