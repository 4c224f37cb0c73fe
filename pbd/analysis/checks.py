"""Checks of the networks, data and settings of an analysis, before anything is computed where that is possible."""

from collections.abc import Mapping

import keras
import numpy as np

from pbd.errors import BadInputError, UsageError, unknown_name
from pbd.networks import graph

AVERAGE, FOURIER = POSITIONS = ("average", "fourier")
"""What happens to the positions of feature maps (see `pbd.analyse`)."""


def check_settings(
    students: Mapping[str, keras.Model],
    split: str,
    positions: str,
    limit: int | None,
    similarity_images: int | None,
    population: bool,
) -> None:
    """Check the settings of an analysis.

    Raises:
        UsageError: a name is unknown, a number is too small, or there are too few students.
    """
    for kind, name, names in (
        ("split", split, ("train", "validation", "test")),
        ("positions", positions, POSITIONS),
    ):
        if name not in names:
            raise UsageError(unknown_name(kind, name, names))
    for setting, value in {"limit": limit, "similarity_images": similarity_images}.items():
        if value is not None and value < 2:
            raise UsageError(f"{setting} must be at least 2. Received: {value}. Raise it.")
    if len(students) < (2 if population else 1):
        raise UsageError(
            f"an analysis needs a student, and that of a population two. Received: {len(students)}. Give more."
        )


def check_networks(teacher: keras.Model, others: Mapping[str, keras.Model]) -> None:
    """Check that networks, given by name, take the images of the teacher and know its classes.

    Raises:
        BadInputError: one does not.
    """
    for name, model in others.items():
        _check_fit(name, model, teacher)


def _check_fit(name: str, model: keras.Model, teacher: keras.Model) -> None:
    ends = [(graph.image_shape(each), graph.as_functional(each).outputs[0].shape[-1]) for each in (teacher, model)]
    (shape, classes), (its_shape, its_classes) = ends
    fits = all(None in pair or pair[0] == pair[1] for pair in zip(shape, its_shape, strict=True))
    if not fits or classes != its_classes:
        raise BadInputError(
            f"networks must have the input and the classes of the teacher, {shape} and {classes}. "
            f"Received: {name!r} with {its_shape} and {its_classes}. Give a network of the same task."
        )


def check_outputs(name: str, outputs: np.ndarray) -> None:
    """Check that the outputs of a network, (images, classes), are finite; the largest of NaNs is no answer.

    Raises:
        BadInputError: one is not.
    """
    count = int((~np.isfinite(outputs)).any(axis=-1).sum())
    if count:
        raise BadInputError(
            f"the outputs of networks must be finite. Received: {name!r}, with NaN or infinity for {count} of "
            f"{len(outputs)} images. Leave it out, or make it again."
        )


def check_labels(labels: np.ndarray | None, classes: int) -> None:
    """Check that labels, (images,), are classes of the teacher.

    Raises:
        BadInputError: one is not.
    """
    if labels is not None and int(labels.min()) < 0:
        raise BadInputError(
            f"labels must be classes, from 0. Received: {int(labels.min())}. Give --no-labels, or another split."
        )
    if labels is not None and int(labels.max()) >= classes:
        raise BadInputError(
            f"labels must be below the number of the teacher's classes, {classes}. Received: {int(labels.max())}. "
            "Give the data that the teacher was trained for."
        )
