"""Why a teacher may be no better than chance: labels with another numbering, or another preprocessing of pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pbd.data import Dataset, IndexedSplit
from pbd.data.preprocessing import check_preprocess, preprocessor
from pbd.errors import PbdError
from pbd.learning.chance import Predictions, predicted_classes

if TYPE_CHECKING:
    import keras

PREPROCESSINGS = ("none", "unit", "mobilenet", "vgg16", "densenet")
"""The kinds of `pbd.data.preprocessing` that differ: raw pixels, [0, 1], [-1, 1], BGR minus means, standardised RGB."""
SMALLEST_KAPPA = 0.3
"""A change repairs the teacher if Cohen's kappa with it is at least so large."""
SIMILAR = 0.05
"""Of changes whose kappa differs by less, the simplest one is named."""
MOST_CLASSES = 6
"""How many classes of a numbering a message names."""


@dataclass(frozen=True)
class Change:
    """Something that the user can change, or nothing."""

    condition: str = ""
    """Completes "with ..."."""
    remedy: str = ""


@dataclass(frozen=True)
class Outcome:
    """The predictions of the teacher if some changes were made."""

    changes: tuple[Change, ...]
    predictions: Predictions

    @property
    def is_repaired(self) -> bool:
        return self.predictions.kappa >= SMALLEST_KAPPA and self.predictions.is_better_than_chance

    def describe(self) -> str:
        """Return the changes, the accuracy with them, and the remedy."""
        changes = [change for change in self.changes if change.condition]
        conditions = " and ".join(change.condition for change in changes)
        accuracy, count = self.predictions.accuracy, len(self.predictions.labels)
        return f"With {conditions} it would be {accuracy:.1%} of {count}: {'; '.join(c.remedy for c in changes)}."


def diagnose(
    teacher: "keras.Model", dataset: Dataset, sample: tuple[np.ndarray, np.ndarray], is_pretrained: bool = True
) -> str:
    """Return, in one sentence, the simplest change with which the teacher fits the data.

    Args:
        teacher: the network that is no better than chance.
        dataset: the data of the run.
        sample: images without preprocessing, and their labels.
        is_pretrained: whether the network came trained; if not, pbd trained it, perhaps in too few steps.
    """
    images, labels = sample  # copied for each change: functions of keras.applications write into arrays
    as_it_is, *outcomes = [
        outcome
        for change, function in _pixel_changes(dataset)
        for outcome in _numberings(change, _predicted(teacher, function(images.copy())), labels)
    ]
    repaired = [outcome for outcome in outcomes if outcome.is_repaired]
    if repaired:
        best = max(outcome.predictions.kappa for outcome in repaired)
        return next(outcome for outcome in repaired if outcome.predictions.kappa >= best - SIMILAR).describe()
    if any(outcome.predictions.kappa >= SMALLEST_KAPPA for outcome in (as_it_is, *outcomes)):
        return "So few images prove nothing: give more labelled images for validation."
    remedy = "check the teacher and the labels" if is_pretrained else "give more --teacher-epochs, or more images"
    return f"No other numbering of the classes and no --preprocess repairs it: {remedy}."


def _predicted(teacher: "keras.Model", images: Any, at_once: int = 64) -> np.ndarray:
    parts = [predicted_classes(teacher, images[start : start + at_once]) for start in range(0, len(images), at_once)]
    return np.concatenate(parts)


def _pixel_changes(dataset: Dataset) -> Iterator[tuple[Change, Callable[[Any], Any]]]:
    """Yield changes of the preprocessing, first none, each with its function of images without preprocessing."""
    split = dataset.validation
    pixel_max = split.images.pixel_max if isinstance(split, IndexedSplit) else None
    yield Change(), preprocessor(dataset.preprocess)
    if pixel_max is not None and pixel_max <= 1.0:
        yield Change("pixels in 0..255", "multiply the images by 255"), lambda images: images * 255.0
    for name in PREPROCESSINGS:
        try:
            check_preprocess(name, dataset.image_shape, pixel_max)
        except PbdError:
            continue
        if name != dataset.preprocess:
            yield Change(f"--preprocess {name}", f"give --preprocess {name}"), preprocessor(name)


def _numberings(pixels: Change, classes: np.ndarray, labels: np.ndarray) -> Iterator[Outcome]:
    """Yield the outcomes of a change of the pixels with numberings of the classes, from the simplest.

    Another order is matched to one half of the images and scored on the other half.
    """
    yield Outcome((pixels, Change()), Predictions(classes, labels))
    lowered = Change("each label lowered by 1", "subtract 1 from all labels, or give --no-labels")
    yield Outcome((pixels, lowered), Predictions(classes, labels - 1))
    raised = Change("each label raised by 1", "add 1 to all labels, or give --no-labels")
    yield Outcome((pixels, raised), Predictions(classes, labels + 1))
    order = _matching_order(classes[::2], labels[::2])
    renumbered = np.array([order.get(int(label), -1) for label in labels[1::2]])
    yield Outcome((pixels, _reordered(order)), Predictions(classes[1::2], renumbered))


def _reordered(order: dict[int, int]) -> Change:
    shown = ", ".join(f"{label} as {output}" for label, output in sorted(order.items())[:MOST_CLASSES])
    more = ", ..." if len(order) > MOST_CLASSES else ""
    return Change(
        f"the classes in another order (label {shown}{more})",
        "renumber the labels (in a folder, rename the class folders), or give --no-labels",
    )


def _matching_order(classes: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Return a one-to-one assignment of labels to predicted classes, the most frequent pairs first."""
    counts = np.zeros((int(labels.max()) + 1, int(classes.max()) + 1), int)
    np.add.at(counts, (labels, classes), 1)
    order: dict[int, int] = {}
    while counts.max() > 0:
        label, output = map(int, np.unravel_index(counts.argmax(), counts.shape))
        order[label] = output
        counts[label, :] = counts[:, output] = 0
    return order
