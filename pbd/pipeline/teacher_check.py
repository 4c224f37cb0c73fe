"""The check that the teacher fits the data: before training, it must be better than chance on labelled images.

A teacher that is no better than chance usually comes with labels or preprocessing that it was not trained with.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pbd.data import Dataset, IndexedSplit
from pbd.errors import BadInputError
from pbd.learning.chance import Predictions, predicted_classes
from pbd.pipeline import teacher_diagnosis

if TYPE_CHECKING:
    import keras

MOST_IMAGES = 1000
"""At most this many images are classified; a good teacher needs one batch."""
FEWEST_IMAGES = 30
"""Fewer images prove nothing."""
AT_ONCE = 64
"""Images in one forward pass."""
DIAGNOSED_BATCHES = 4
"""Batches that the diagnosis of a weak teacher classifies, once for each change that it tries."""


def check(teacher: "keras.Model", dataset: Dataset, allow_weak: bool, is_pretrained: bool = True) -> tuple[str, ...]:
    """Check that the teacher is better than chance on validation images, and training images if these are too few.

    Args:
        teacher: flat and functional.
        dataset: the data of the run; without labels, nothing is checked.
        allow_weak: go on with a teacher that is no better than chance.
        is_pretrained: whether it came trained; if not, pbd trained it on the training images.

    Returns:
        Events for the report: that the teacher is no better than chance, if that is allowed.

    Raises:
        BadInputError: it is not, and that is not allowed; the message names what would repair it.
    """
    if not dataset.labelled:
        return ()
    predictions = _predictions(teacher, dataset)
    if _proves_nothing(predictions.labels) or predictions.is_better_than_chance:
        return ()
    seen = (
        f"{predictions.accuracy:.1%} of {len(predictions.labels)} images are classified correctly, chance gives "
        f"{predictions.chance:.1%}"
    )
    remedy = teacher_diagnosis.diagnose(teacher, dataset, _raw_sample(dataset), is_pretrained)
    if allow_weak:
        return (f"the teacher is no better than chance on the data: {seen}. {remedy}",)
    raise BadInputError(
        f"the teacher must be better than chance on the data. Received: {seen}. {remedy} "
        "Give --allow-weak-teacher to go on all the same."
    )


def _proves_nothing(labels: np.ndarray) -> bool:
    """Return whether there are too few images to judge the teacher, or all have the same label."""
    return len(labels) < FEWEST_IMAGES or len(np.unique(labels)) < 2


def _predictions(teacher: "keras.Model", dataset: Dataset) -> Predictions:
    """Return predictions until they are better than chance, for at most `MOST_IMAGES` images."""
    classes, labels = np.zeros(0, int), np.zeros(0, int)
    for images, batch_labels in _batches(dataset):
        classes = np.append(classes, predicted_classes(teacher, images))
        labels = np.append(labels, batch_labels)
        seen = Predictions(classes, labels)
        if len(labels) >= MOST_IMAGES or (not _proves_nothing(labels) and seen.is_better_than_chance):
            break
    return Predictions(classes, labels)


def _raw_sample(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return some images without preprocessing, and their labels."""
    batches = itertools.islice(_batches(replace(dataset, preprocess="none")), DIAGNOSED_BATCHES)
    images, labels = zip(*batches, strict=True)
    return np.concatenate([np.asarray(batch) for batch in images]), np.concatenate(labels)


def _batches(dataset: Dataset) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield small batches in random order, of the validation and then of the training images, without augmentation.

    Their order is random, since a split that the user provides may be sorted by class; a stream is stored in random
    order.
    """
    for split in (dataset.validation, dataset.train):
        if isinstance(split, IndexedSplit):
            order = np.random.default_rng(0).permutation(len(split))[:MOST_IMAGES]
            split = replace(split, rows=split.rows[order], labels=split.labels[order])
        sample = replace(dataset, validation=split, batch_size=AT_ONCE)
        for images, labels in sample.batches("validation", limit=MOST_IMAGES):
            yield images, np.asarray(labels)
