"""Adapt an assembled student to its own feature maps: batch statistics, and the kernels of convolutions.

Blocks were trained on the teacher's feature maps. In the student, errors of the blocks before add up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from pbd.collective import SINGLE, Collective
from pbd.data import Dataset
from pbd.learning import ghost_batch_norm
from pbd.learning.batch_statistics import recalibrate_batch_norm
from pbd.learning.metrics import Metrics
from pbd.records import ProgressCallback, no_progress
from pbd.student.refit import refit
from pbd.student.validation import Validator

ADAPTATION_IMAGES = 2048
"""Number of training images to which a student is adapted."""


@dataclass(frozen=True)
class Adapted:
    """What the adaptation of a student achieved: metrics on the validation split."""

    recalibrated: Metrics
    """Metrics with batch statistics of its own."""
    refitted: Metrics | None
    """After refitting; `None` if it was not refitted."""

    @property
    def metrics(self) -> Metrics:
        """The metrics of the student as it is now: refitted if that lowered its divergence from the teacher."""
        return self.refitted if self.refitted is not None and self.is_better else self.recalibrated

    @property
    def is_better(self) -> bool:
        """Whether refitting lowered the divergence from the teacher."""
        return self.refitted is not None and bool(self.refitted.kl < self.recalibrated.kl)

    def events(self) -> Iterator[str]:
        """Yield what happened, as sentences of the report."""
        if self.refitted is not None:
            change = f"KL divergence {self.recalibrated.kl:.4f} -> {self.refitted.kl:.4f}"
            yield f"refitted in order: {change}{'' if self.is_better else '; the kernels before are kept'}"


def adapt(
    student: keras.Model,
    teacher: keras.Model,
    ends: Mapping[str, str],
    dataset: Dataset,
    collective: Collective = SINGLE,
    emit: ProgressCallback = no_progress,
) -> Adapted:
    """Re-estimate the student's batch statistics and refit its convolutions, in place.

    A student that refitting does not bring closer to the teacher keeps its kernels, with batch statistics of its own.

    Args:
        student: Changed in place; with all its channels (see `assemble.swap_blocks`).
        teacher: The network to which the student is adapted.
        ends: By replaced layer, the operation that ends its block; empty: only batch statistics change.
        dataset: This worker's part of the data.
        collective: The workers that have the other parts.
        emit: Called with the number of convolutions refitted.
    """
    batches = _images(dataset)
    validator, refitted, weights = Validator(teacher, dataset, collective), None, student.get_weights()
    if ends:
        # Refitting starts from the teacher's batch statistics: those of few images are less exact.
        refit(student, teacher, ends, batches, collective, emit=emit)
        refitted, new = validator.metrics(student), student.get_weights()
        student.set_weights(weights)
    if dataset.batch_size < ghost_batch_norm.SMALLEST:  # one image has no variance behind `Dense`
        batches = _images(replace(dataset, batch_size=ghost_batch_norm.SMALLEST))
    recalibrate_batch_norm(student, batches, collective)
    adapted = Adapted(validator.metrics(student), refitted)
    if adapted.is_better:
        student.set_weights(new)
    return adapted


def _images(dataset: Dataset) -> list[Any]:
    return [images for images, _ in dataset.batches("train", limit=ADAPTATION_IMAGES)]
