"""The metrics of students on validation images."""

import keras
import numpy as np

from pbd.collective import SINGLE, Collective
from pbd.data import Dataset
from pbd.learning.metrics import Metrics, evaluate


class Validator:
    """Scores students on validation images, of which each worker evaluates its part.

    The teacher's outputs are computed with the first student, and kept.

    Args:
        teacher: Flat and functional; its weights do not change.
        dataset: This worker's part of the data.
        collective: The workers that have the other parts; all score the same students in the same order.
        limit: Score on the first images, at most this many (see `Dataset.batches`), in place of the whole split.
    """

    def __init__(
        self, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE, limit: int | None = None
    ) -> None:
        self.collective = collective
        self._teacher, self._dataset, self._limit = teacher, dataset, limit
        self._teacher_outputs: list[np.ndarray] = []

    def metrics(self, student: keras.Model) -> Metrics:
        """Return the metrics of a student."""
        return evaluate(
            self._teacher,
            [student],
            self._dataset.batches("validation", self._limit),
            self._dataset.labelled,
            self.collective,
            teacher_outputs=self._teacher_outputs,
        )[0]


def validate(student: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE) -> Metrics:
    """Return the metrics of one student (see `Validator`)."""
    return Validator(teacher, dataset, collective).metrics(student)
