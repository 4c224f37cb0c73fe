"""What a network costs and how often it is right: parameters, multiply-accumulates, accuracy."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.system import watchdog


@dataclass(frozen=True)
class Metrics:
    """How good a network's answers are, by the labels and by the teacher."""

    accuracy: float | None
    """Share of images whose largest score is at their label; `None` without labels."""
    agreement: float
    """Share of images whose largest score is where the teacher's is."""
    kl: float
    """Mean Kullback-Leibler divergence of the outputs from the teacher's, in nats."""

    @property
    def score(self) -> float:
        """What choices are made by: the accuracy, or, without labels, the agreement with the teacher."""
        return self.agreement if self.accuracy is None else self.accuracy


class MetricAccumulator:
    """Metrics several networks against the labels and the teacher, batch by batch."""

    def __init__(self, networks: int, labelled: bool) -> None:
        self._labelled = labelled
        self._right, self._agreeing = np.zeros(networks, int), np.zeros(networks, int)
        self._divergence = np.zeros(networks)
        self._images: float = 0

    def add(self, teacher_scores: np.ndarray, scores: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Take in a batch of outputs, each of shape `(batch, classes)`, and its labels, `(batch,)`."""
        watchdog.touch()
        reference, answers = log_probabilities(teacher_scores), np.argmax(teacher_scores, axis=-1)
        self._images += len(labels)
        for i, score in enumerate(scores):
            predicted = np.argmax(score, axis=-1)
            self._right[i] += np.sum(predicted == labels)
            self._agreeing[i] += np.sum(predicted == answers)
            self._divergence[i] += np.sum(np.exp(reference) * (reference - log_probabilities(score)))

    def all_reduce_sum(self, collective: Collective) -> None:
        """Count what the others of a collective have marked, too."""
        counted = [self._right, self._agreeing, self._divergence, np.array([self._images])]
        added = all_reduce_sums(collective, [np.asarray(each, np.float64) for each in counted])
        self._right, self._agreeing, self._divergence, self._images = *added[:3], float(added[3][0])

    @property
    def marks(self) -> list[Metrics]:
        right, agreeing = self._right / self._images, self._agreeing / self._images
        return [
            Metrics(float(r) if self._labelled else None, float(a), float(d))
            for r, a, d in zip(right, agreeing, self._divergence / self._images, strict=True)
        ]


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return the logarithms of the class probabilities that a network's outputs stand for.

    Args:
        scores: `(batch, classes)`, logits, or probabilities where every row is one.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if are_probabilities(scores):
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def in_one_size(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, int]]:
    """Yield batches, and how many images of each count: one that is smaller is filled up with copies of its last.

    A network is traced anew for every size of batch, which takes longer than a few more images do.

    Args:
        batches: pairs of images and labels, the first as large as any.
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
) -> list[Metrics]:
    """Return the marks of each model, in one pass over the images.

    Args:
        teacher: what the models are compared with; scores of shape `(batch, classes)`.
        models: any number, the teacher itself among them if wanted.
        batches: pairs of images and integer labels of shape `(batch,)`.
        labelled: whether the labels mean anything.
        collective: those whose batches count, too.
    """
    marking = MetricAccumulator(len(models), labelled)
    for images, labels, count in in_one_size(batches):
        reference = np.asarray(teacher.predict_on_batch(images))[:count]
        scores = [reference if m is teacher else np.asarray(m.predict_on_batch(images))[:count] for m in models]
        marking.add(reference, scores, np.asarray(labels))
    marking.all_reduce_sum(collective)
    return marking.marks


def accuracy(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> float:
    """Return the share of images whose largest score is at their label."""
    return evaluate(model, [model], batches, labelled=True)[0].score


def are_probabilities(scores: np.ndarray) -> bool:
    """Return whether outputs of shape `(batch, classes)` are probabilities (each row sums to one) and not logits."""
    return bool(np.all(scores >= 0) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3))


def ends_in_probabilities(model: keras.Model, images: Any) -> bool:
    """Return whether the outputs for these images are probabilities and not logits."""
    return are_probabilities(np.asarray(model.predict_on_batch(images), dtype=np.float64))
