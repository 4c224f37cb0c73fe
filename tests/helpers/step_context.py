"""What a step of compression can use, in this process: without workers, and with counted calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from pbd.collective import SINGLE
from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.pipeline.remote_tasks import Measure
from pbd.run_dir.journal import Journal
from pbd.student import adaptation, fine_tuning
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import validate
from tests.helpers.palette import ignore


class StepContext:
    """Stands for `pbd.compression.context.Context`."""

    def __init__(self, teacher: keras.Model, dataset: Dataset, folder: Path, keeps_zeros: bool = False) -> None:
        self.teacher, self.dataset, self.journal = teacher, dataset, Journal(folder)
        self.keeps_zeros, self.seed, self.display = keeps_zeros, 5, self
        self.trainings: list[tuple[StudentConfig, int]] = []
        """Settings and first epoch of each training."""
        self.distillations: list[DistillationConfig | None] = []
        """What each training learns from besides."""
        self.phases: list[str] = []
        self.stop_at: int | None = None
        """The number of trainings after which the process ends."""

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def for_new_network(self) -> "StepContext":
        return self

    def evaluate(self, model: keras.Model, split: str = "validation", teacher: keras.Model | None = None) -> Metrics:
        return validate(model, teacher or self.teacher, self.dataset)

    def adapt(self, student: keras.Model, teacher: keras.Model, ends: Mapping[str, str]) -> adaptation.Adapted:
        return adaptation.adapt(student, teacher, ends, self.dataset)

    def measure(self, model: keras.Model, measure: Measure) -> Any:
        return measure(model, self.teacher, self.dataset, SINGLE)

    def fine_tune(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics | None = None,
        teacher: keras.Model | None = None,
        first_epoch: int = 0,
        distillation: DistillationConfig | None = None,
    ) -> FineTuneState:
        if len(self.trainings) == self.stop_at:
            raise Interruption
        self.trainings.append((settings, first_epoch))
        self.distillations.append(distillation)
        initial = initial or self.evaluate(model)
        if settings.fine_tune_epochs == 0:
            return FineTuneState(initial, settings.fine_tune_learning_rate, best_weights=model.get_weights())
        return fine_tuning.fine_tune(
            model,
            teacher or self.teacher,
            self.dataset,
            settings,
            initial,
            ignore,
            first_epoch,
            distillation=distillation,
        )


class Interruption(Exception):
    """Stands for the end of the process."""
