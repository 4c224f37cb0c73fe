"""A student builder whose workers are this process alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras

from pbd.config import DistillationConfig, RunConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.progress import ProgressDisplay
from pbd.records import BlockTask, Progress
from pbd.student.adaptation import Adapted, adapt
from pbd.student.builder import StudentBuilder
from pbd.student.checkpoints import FineTuneState
from pbd.student.fine_tuning import fine_tune
from tests.helpers.palette import ignore


@dataclass
class LocalWorkers:
    """Recalibrates and fine-tunes without other processes."""

    teacher: keras.Model
    dataset: Dataset
    emit: Callable[[Progress], None]

    def adapt(self, model: keras.Model, ends: Mapping[str, str]) -> Adapted:
        return adapt(model, self.teacher, ends, self.dataset)

    def fine_tune(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics,
        first_epoch: int,
        distillation: DistillationConfig,
    ) -> FineTuneState:
        data, emit = self.dataset, self.emit
        return fine_tune(model, self.teacher, data, settings, initial, emit, first_epoch, distillation=distillation)


def builder(teacher: keras.Model, dataset: Dataset, tasks: tuple[BlockTask, ...], config: RunConfig) -> StudentBuilder:
    """Return a builder that shows no progress."""
    return StudentBuilder(
        teacher, dataset, tasks, config, ProgressDisplay(), workers=LocalWorkers(teacher, dataset, ignore)
    )
