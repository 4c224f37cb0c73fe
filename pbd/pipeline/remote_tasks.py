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
from pbd.collective import Team
from pbd.config import StudentConfig
from pbd.data import Part
from pbd.learning import metrics
from pbd.learning.loop import Emit
from pbd.learning.metrics import Marks
from pbd.records import BlockResult, TaskGroup
from pbd.student import fine_tuning
from pbd.student.assemble import settle
from pbd.student.checkpoints import FileBookmark
from pbd.student.fine_tuning import Tuning

BOOKMARKS = "fine_tuning"
"""The folder of the run directory where tunings are kept until the run is complete."""
EXCHANGES = 7
"""How often an exchange is timed; the median counts."""


@dataclass(frozen=True)
class TrainShared:
    """Train one group, each worker on its part of every batch."""

    context: TrainingContext
    group: TaskGroup

    def __call__(self, team: Team, emit: Emit) -> list[BlockResult]:
        began = time.monotonic()
        results = train_group(self.context, self.group, emit, team)
        seconds = time.monotonic() - began
        stamp = {"worker": 0, "shared": True, "predicted_s": self.group.predicted_s}
        return [replace(r, **stamp, seconds=r.seconds if r.found else seconds) for r in results]


@dataclass(frozen=True)
class SettleShared:
    """Re-estimate the batch statistics of the student in a file and mark it, each worker on some of the batches."""

    context: TrainingContext
    student: Path

    def __call__(self, team: Team, emit: Emit) -> tuple[list[np.ndarray], Marks]:
        """Return the student's weights and its marks on the validation split."""
        teacher, dataset = load(self.context)
        model = keras.models.load_model(self.student, compile=False)
        marks = settle(model, teacher, dataset.shared(Part(team.index, team.size)), team)
        return model.get_weights(), marks


@dataclass(frozen=True)
class TuneShared:
    """Fine-tune the student in a file, each worker on its part of every batch."""

    context: TrainingContext
    student: Path
    settings: StudentConfig
    before: Marks
    first_epoch: int

    def __call__(self, team: Team, emit: Emit) -> tuple[list[np.ndarray], Tuning]:
        """Return the student's weights and what came of it."""
        teacher, dataset = load(self.context)
        keras.utils.set_random_seed(blocks.derive_seed(self.context.seed, "student"))  # for layers such as dropout
        model = keras.models.load_model(self.student, compile=False)
        tuning = fine_tuning.fine_tune(
            model,
            teacher,
            dataset,
            self.settings,
            self.before,
            emit,
            self.first_epoch,
            team,
            self._bookmark(model, team),
        )
        return model.get_weights(), tuning

    def _bookmark(self, model: keras.Model, team: Team) -> FileBookmark:
        """Return where this tuning is kept; other tunings of a run have other layers, or begin at another epoch."""
        layers = [(layer.name, layer.trainable) for layer in model.layers]
        what = [layers, self.first_epoch, asdict(self.settings)]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return FileBookmark(self.context.journal, f"{BOOKMARKS}/{digest[:16]}.npz", team)


@dataclass(frozen=True)
class MarkShared:
    """Mark networks on a split, each worker on some of its batches."""

    context: TrainingContext
    models: tuple[Path, ...]
    split: str

    def __call__(self, team: Team, emit: Emit) -> list[Marks]:
        """Return the marks of each network."""
        teacher, dataset = load(self.context)
        models = [teacher if str(p) == self.context.teacher_path else keras.models.load_model(p) for p in self.models]
        batches = dataset.shared(Part(team.index, team.size)).batches(self.split)
        return metrics.mark(teacher, models, batches, dataset.labelled, team)


@dataclass(frozen=True)
class TimeExchange:
    """Measure what adding up takes, once all have loaded, at the same time, what they will train with."""

    context: TrainingContext
    values: int
    """How many float32 numbers each worker brings."""

    def __call__(self, team: Team, emit: Emit) -> float:
        """Return the median seconds of an exchange."""
        load(self.context)
        brought, taken = np.ones(self.values, np.float32), []
        for _ in range(EXCHANGES):
            team.add_up(np.zeros(1))  # all begin at once
            began = time.perf_counter()
            team.add_up(brought)
            taken.append(time.perf_counter() - began)
        return float(np.median(taken))
