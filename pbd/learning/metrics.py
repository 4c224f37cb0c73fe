"""Accuracy of classifiers, and their agreement with and divergence from a teacher."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.learning.class_counts import ClassCounts
from pbd.networks import heads
from pbd.system import watchdog


@dataclass(frozen=True)
class Metrics:
    """The quality of a network's outputs, measured against the labels and against the teacher."""

    accuracy: float | None
    """Top-1 accuracy; None without labels."""
    agreement: float
    """Share of images for which the network and the teacher predict the same class."""
    kl: float
    """Mean Kullback-Leibler divergence of the outputs from the teacher's, in nats."""

    @property
    def score(self) -> float:
        """The accuracy, or without labels the agreement: the number by which networks are compared."""
        return self.agreement if self.accuracy is None else self.accuracy

    def on_validation(self) -> str:
        """Return the score in words, as one on the validation split."""
        name = "agreement" if self.accuracy is None else "accuracy"
        return f"validation {name} {self.score:.4f}"


class MetricAccumulator:
    """Accumulates the metrics of several networks batch by batch.

    Args:
        networks: Number of networks.
        labelled: Whether the labels are valid.
    """

    def __init__(self, networks: int, labelled: bool) -> None:
        self._labelled = labelled
        self._correct, self._agreeing = np.zeros(networks, int), np.zeros(networks, int)
        self._divergence = np.zeros(networks)
        self._images: float = 0

    def add(self, teacher_outputs: np.ndarray, outputs: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Add a batch.

        Args:
            teacher_outputs: Logits or probabilities, `(batch, classes)`; if there is one output, the logit of class 1.
            outputs: The same for each network.
            labels: Integer classes, `(batch,)`.
        """
        watchdog.touch()
        teacher_outputs, *outputs = map(class_scores, (teacher_outputs, *outputs))
        reference, teacher_classes = log_probabilities(teacher_outputs), np.argmax(teacher_outputs, axis=-1)
        self._images += len(labels)
        for i, output in enumerate(outputs):
            classes = np.argmax(output, axis=-1)
            self._correct[i] += np.sum(classes == labels)
            self._agreeing[i] += np.sum(classes == teacher_classes)
            self._divergence[i] += np.sum(np.exp(reference) * (reference - log_probabilities(output)))

    def all_reduce_sum(self, collective: Collective) -> None:
        """Add the batches of all other workers of the collective."""
        counts = [self._correct, self._agreeing, self._divergence, np.array([self._images])]
        totals = all_reduce_sums(collective, [np.asarray(count, np.float64) for count in counts])
        self._correct, self._agreeing, self._divergence, self._images = *totals[:3], float(totals[3][0])

    def result(self) -> list[Metrics]:
        """Return the metrics of each network over all images added so far."""
        accuracies, agreements = self._correct / self._images, self._agreeing / self._images
        return [
            Metrics(float(accuracy) if self._labelled else None, float(agreement), float(kl))
            for accuracy, agreement, kl in zip(accuracies, agreements, self._divergence / self._images, strict=True)
        ]


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return the logarithms of the class probabilities, in float64.

    Args:
        outputs: Logits, or probabilities if every row is a distribution; `(batch, classes)`.
    """
    outputs = np.asarray(outputs, dtype=np.float64)
    if are_probabilities(outputs):
        return np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    shifted = outputs - outputs.max(axis=-1, keepdims=True)  # so that exp cannot overflow
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def class_scores(logits: Any) -> Any:
    """Return one score per class: a single logit z, which is that of class 1 of two, counts as (-z/2, z/2).

    The two scores sum to 0, so that they are never taken for probabilities.

    Args:
        logits: Array or tensor of shape `(batch, outputs)`.
    """
    return logits * np.array([[-0.5, 0.5]], np.float32) if logits.shape[-1] == 1 else logits


def predict(model: keras.Model, images: Any) -> np.ndarray:
    """Return logits or probabilities of the classes, `(batch, outputs)`; of a final sigmoid, the logits before it.

    The outputs of a sigmoid are not a distribution over the classes.
    """
    outputs = np.asarray(model.predict_on_batch(images))
    if heads.head_of(model) is not heads.Head.SIGMOID:
        return outputs
    tiny = np.finfo(np.float32).tiny
    probabilities = np.asarray(outputs, np.float64)
    return np.log(np.maximum(probabilities, tiny)) - np.log(np.maximum(1.0 - probabilities, tiny))


def pad_batches(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, int]]:
    """Pad the images of every batch to one size by repeating the last image; also yield the number of real images.

    Without padding, a smaller last batch would make Keras trace the network again, which takes longer.

    Args:
        batches: Pairs of images and labels, of which the first is the largest.

    Yields:
        Padded images, labels (not padded), number of real images.
    """
    size = 0
    for images, labels in batches:
        count = len(images)
        size = max(size, count)
        if count < size:
            images = np.asarray(images)
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        yield images, labels, count


def evaluate(
    teacher: keras.Model,
    models: Sequence[keras.Model],
    batches: Iterable[tuple[Any, Any]],
    labelled: bool,
    collective: Collective = SINGLE,
    counts: ClassCounts | None = None,
    teacher_outputs: list[np.ndarray] | None = None,
) -> list[Metrics]:
    """Return the metrics of each model, in one pass over the images.

    Args:
        teacher: The network with which the models are compared; outputs of shape `(batch, classes)`.
        models: The networks to evaluate. If the teacher is among them, its outputs are computed once.
        batches: This worker's batches: pairs of images and integer labels of shape `(batch,)`.
        labelled: Whether the labels are valid.
        collective: The workers that have the other batches.
        counts: Gets the answers of the teacher and of the last model, with those of the other workers.
        teacher_outputs: The teacher's for each of these batches; an empty list gets them.
    """
    accumulator = MetricAccumulator(len(models), labelled)
    kept = teacher_outputs
    for number, (images, labels, count) in enumerate(pad_batches(batches)):
        reference = kept[number] if kept and number < len(kept) else predict(teacher, images)[:count]
        if kept is not None and number == len(kept):
            kept.append(reference)
        outputs = [reference if m is teacher else predict(m, images)[:count] for m in models]
        accumulator.add(reference, outputs, np.asarray(labels))
        if counts:
            before, after = (np.argmax(class_scores(each), axis=-1) for each in (reference, outputs[-1]))
            counts.add(np.asarray(labels), before, after)
    accumulator.all_reduce_sum(collective)
    if counts:
        counts.all_reduce_sum(collective)
    return accumulator.result()


def accuracy(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> float:
    """Return the model's top-1 accuracy."""
    return evaluate(model, [model], batches, labelled=True)[0].score


def are_probabilities(outputs: np.ndarray) -> bool:
    """Return whether outputs of shape `(batch, classes)` are probabilities (each row sums to 1), not logits.

    The sum may be as far from 1 as that of probabilities in bfloat16.
    """
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-2))


def outputs_probabilities(model: keras.Model, images: Any) -> bool:
    """Return whether the model's outputs for these images are probabilities, not logits."""
    return are_probabilities(np.asarray(model.predict_on_batch(images), dtype=np.float64))
