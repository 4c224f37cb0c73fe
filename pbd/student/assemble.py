"""Assemble the student from the teacher and the accepted blocks, and re-estimate its batch statistics."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.networks import channels, graph
from pbd.networks.compiled import compiled
from pbd.records import BlockResult, BlockTask
from pbd.student.fine_tuning import validate
from pbd.system import watchdog

RECALIBRATION_IMAGES = 2048
"""Number of training images on which batch statistics are re-estimated."""


def assemble(teacher: keras.Model, tasks: Iterable[BlockTask], accepted: Mapping[str, BlockResult]) -> keras.Model:
    """Return a copy of the teacher with the accepted blocks in place of their layers, without channels nothing reads.

    Args:
        teacher: Flat and functional.
        tasks: The tasks of the run; they say how a block is built.
        accepted: The blocks to use, by layer.
    """
    builders = {
        task.layer.name: functools.partial(blocks.get(task.design).build, layer=task.layer, seed=0)
        for task in tasks
        if task.layer.name in accepted and accepted[task.layer.name].design == task.design
    }
    student = graph.swap(teacher, builders)
    for result in accepted.values():
        blocks.set_weights(student, result.weights)
    if selections := blocks.constant_selections(student):
        student = graph.swap(student, selections)
    return channels.remove_unread(student)


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


def recalibrate_and_validate(
    student: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE
) -> Metrics:
    """Re-estimate the student's batch statistics in place; return its metrics on the validation split.

    Args:
        student: Changed in place.
        teacher: The network with which the student is compared.
        dataset: This worker's part of the data.
        collective: The workers that have the other parts.
    """
    images = (images for images, _ in dataset.batches("train", limit=RECALIBRATION_IMAGES))
    recalibrate_batch_norm(student, images, collective)
    return validate(student, teacher, dataset, collective)
