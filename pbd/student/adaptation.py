"""Adapt an assembled student to its own feature maps: batch statistics, and the kernels of convolutions.

Blocks were trained on the teacher's feature maps. In the student, errors of the blocks before add up.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.networks.compiled import compiled
from pbd.records import ProgressCallback, no_progress
from pbd.student.refit import refit
from pbd.student.validation import Validator
from pbd.system import watchdog

ADAPTATION_IMAGES = 2048
"""Number of training images to which a student is adapted."""


@dataclass(frozen=True)
class Adapted:
    """What the adaptation of a student achieved: metrics on the validation split."""

    recalibrated: Metrics
    """With batch statistics of its own."""
    refitted: Metrics | None
    """After refitting; None if it was not refitted."""

    @property
    def metrics(self) -> Metrics:
        """Of the student as it is now: refitted if that lowered its divergence from the teacher."""
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
    batches = [images for images, _ in dataset.batches("train", limit=ADAPTATION_IMAGES)]
    validator, refitted, weights = Validator(teacher, dataset, collective), None, student.get_weights()
    if ends:
        # Refitting starts from the teacher's batch statistics: those of few images are less exact.
        refit(student, teacher, ends, batches, collective, emit=emit)
        refitted, new = validator.metrics(student), student.get_weights()
        student.set_weights(weights)
    recalibrate_batch_norm(student, batches, collective)
    adapted = Adapted(validator.metrics(student), refitted)
    if adapted.is_better:
        student.set_weights(new)
    return adapted


def recalibrate_batch_norm(student: keras.Model, batches: Iterable[Any], collective: Collective = SINGLE) -> None:
    """Set the moving statistics of all batch normalisations to their averages over these batches, in place.

    Blocks were trained on the teacher's activations. Behind other blocks, the input distribution of every batch
    normalisation has shifted, including the teacher's own. Every batch has the same weight; all other layers run in
    inference mode.

    Args:
        student: Changed in place.
        batches: This worker's batches of training images.
        collective: The workers that have the other batches.
    """
    normalisations = [layer for layer in student.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not normalisations:
        return
    settings = [(layer.momentum, layer.trainable) for layer in normalisations]
    in_training_mode, count = {layer.name for layer in normalisations}, 0
    for layer in normalisations:
        layer.trainable = True  # Keras does not update the statistics of frozen layers

    def add(batch: Any, momentum: Any) -> None:
        for layer in normalisations:
            layer.momentum = momentum
        graph.run(student, batch, training=in_training_mode)

    add_compiled = compiled(student, add)
    for count, batch in enumerate(batches, start=1):
        watchdog.touch()
        # The exponential average becomes the mean of the batches so far.
        add_compiled(keras.ops.convert_to_tensor(batch), 1.0 - 1.0 / count)
    for layer, (momentum, trainable) in zip(normalisations, settings, strict=True):
        layer.momentum, layer.trainable = momentum, trainable
    statistics = [value for layer in normalisations for value in (layer.moving_mean, layer.moving_variance)]
    sums = [count * keras.ops.convert_to_numpy(value) for value in statistics]
    *sums, counts = all_reduce_sums(collective, [*sums, np.array([count], np.float32)])
    for value, total in zip(statistics, sums, strict=True):
        value.assign(total / counts)
