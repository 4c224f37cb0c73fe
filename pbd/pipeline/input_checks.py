"""Checks of teacher, data and settings that refuse a run before anything is written."""

import contextlib

import keras

from pbd import blocks
from pbd.config import RunConfig
from pbd.data import Dataset, IndexedSplit
from pbd.data.shapes import as_text, fit_shape
from pbd.data.sources import DIGITS_CLASSES, DIGITS_SHAPE
from pbd.errors import BadInputError, UsageError
from pbd.networks import heads
from pbd.pipeline.teachers import TeacherSource


def check_designs(config: RunConfig) -> None:
    """Refuse block designs that do not exist, and workers that are to share batches but cannot.

    Raises:
        UsageError: a name is that of no design; or workers are to share batches, and a design has batch statistics or
            blocks are trained in float16.
    """
    designs = [blocks.get(name) for name in config.blocks.designs]
    if config.execution.parallel != "data":
        return
    if config.training.precision == "float16":
        raise UsageError(
            "parallel data needs gradients that add up, which those of a scaled loss do not. Received: precision "
            "float16. Give --precision bfloat16, or --parallel task."
        )
    with_statistics = [design.name for design in designs if not design.per_image]
    if with_statistics:
        raise UsageError(
            "parallel data needs blocks without batch normalisation, which sees the whole batch. Received: block "
            f"{with_statistics[0]}. Give --parallel task, or --block decoupled_r2."
        )


def check_default_data(config: RunConfig, source: TeacherSource) -> None:
    """Refuse the built-in digits, which are the data if none are given, for a trained teacher of other images.

    Raises:
        UsageError: the shape of its images or the number of its classes is another one.
    """
    shape, outputs = source.image_shape(), source.num_outputs()
    if shape is None or outputs is None:  # a network that is built for the data
        return
    with contextlib.suppress(BadInputError):
        fit_shape(DIGITS_SHAPE, shape, config.data.image_size, resizable=False)
        if outputs == DIGITS_CLASSES:
            return
    raise UsageError(
        "a trained teacher needs data that fit it. Received: no data, or the built-in digits "
        f"({as_text(DIGITS_SHAPE)}, {DIGITS_CLASSES} classes), for {config.teacher.teacher!r} "
        f"({as_text(shape)}, {outputs} outputs). Give --dataset; in Python, data."
    )


def check_outputs(teacher: keras.Model, dataset: Dataset) -> None:
    """Refuse a teacher without an output for each class.

    Raises:
        BadInputError: there are fewer outputs than classes, or a single one that is no score of one of two classes.
    """
    outputs, classes = teacher.output.shape[-1], dataset.num_classes
    if outputs == 1:
        check_single_output(teacher, classes)
    elif classes is not None and outputs < classes:
        raise BadInputError(
            f"the teacher must have an output for each class, and labels count from 0. Received: {outputs} outputs "
            f"for labels up to {classes - 1} of {dataset.name!r}. {_remedy_for_labels(outputs, dataset)}"
        )


def check_single_output(teacher: keras.Model, classes: int | None) -> None:
    """Refuse a single output that is not the score of class 1 of two, as far as network and labels tell.

    Raises:
        BadInputError: what it is in place of that, and what to do.
    """
    is_sigmoid = heads.head_of(teacher) is heads.Head.SIGMOID
    if not (is_sigmoid or heads.ends_in_logits(teacher)):  # what a last sigmoid reads is a logit
        raise BadInputError(
            "a single output must come from a sigmoid or from a layer without activation. "
            f"Received: a teacher that ends in {teacher.layers[-1].name!r}. "
            "Train it with Dense(1, activation='sigmoid'), or with an output for each class."
        )
    if classes is not None and classes > 2:
        raise BadInputError(
            f"a teacher with one output has the classes 0 and 1. Received: labels up to {classes - 1}. "
            "Correct the labels, or give a teacher with an output for each class."
        )


def _remedy_for_labels(outputs: int, dataset: Dataset) -> str:
    """Return what to do about labels that are as large as the number of outputs, or larger."""
    if outputs + 1 == dataset.num_classes and isinstance(dataset.train, IndexedSplit) and dataset.train.labels.min():
        return "The labels count from 1: subtract 1 from all of them, or give --no-labels."
    return "Correct the labels, give a teacher for these classes, or give --no-labels."


def check_labels(config: RunConfig, dataset: Dataset) -> None:
    """Refuse data without labels if the loss of fine-tuning needs them.

    Raises:
        BadInputError: it does.
    """
    loss = config.student.fine_tune_loss
    if config.student.needs_labels and not dataset.labelled:
        raise BadInputError(
            f"--fine-tune-loss {loss} needs labels. Received: {dataset.name!r}, which has none. Give kd_mse or kd_kl."
        )
