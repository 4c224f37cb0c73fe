"""What a network costs and how often it is right: parameters, multiply-accumulates, accuracy."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import watchdog
from pbd.teamwork import ALONE, Team, add_up_all


def layer_macs(layer: keras.Layer) -> int:
    """Return the multiply-accumulates of one call of a layer, per image.

    Every weight of a convolution's or dense layer's kernel is used once at each output position (at each input
    position where the convolution is transposed). Layers without kernels count as nothing, as is usual.
    """
    kernels = [weight for weight in layer.trainable_weights + layer.non_trainable_weights if "kernel" in weight.name]
    if not kernels or isinstance(layer, keras.Model):
        return 0
    transposed = "Transpose" in type(layer).__name__
    shape = layer.input.shape if transposed else layer.output.shape
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    return math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)


def count_macs(model: keras.Model) -> int:
    """Return the multiply-accumulates of a flat functional model, per image.

    A shared layer counts at each call, each as large as the first.
    """
    return sum(layer_macs(layer) * calls for layer, calls in layer_calls(model))


def layer_calls(model: keras.Model) -> list[tuple[keras.Layer, int]]:
    """Return each layer of a functional model with the number of times that this model calls it."""
    calls: dict[int, int] = {}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
    return [(layer, calls.get(id(layer), 0)) for layer in model.layers]


def count_params(model: keras.Model) -> int:
    """Return the number of parameters, batch statistics included."""
    return model.count_params()


@dataclass(frozen=True)
class Marks:
    """How good a network's answers are, by the labels and by the teacher."""

    accuracy: float | None
    """Share of images whose largest score is at their label; `None` without labels."""
    agreement: float
    """Share of images whose largest score is where the teacher's is."""
    kl: float
    """Mean Kullback-Leibler divergence of the outputs from the teacher's, in nats."""

    @property
    def measure(self) -> float:
        """What choices are made by: the accuracy, or, without labels, the agreement with the teacher."""
        return self.agreement if self.accuracy is None else self.accuracy


class Marking:
    """Marks several networks against the labels and the teacher, batch by batch."""

    def __init__(self, networks: int, labelled: bool) -> None:
        self._labelled = labelled
        self._right, self._agreeing = np.zeros(networks, int), np.zeros(networks, int)
        self._divergence = np.zeros(networks)
        self._images: float = 0

    def add(self, teacher_scores: np.ndarray, scores: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Take in a batch of outputs, each of shape `(batch, classes)`, and its labels, `(batch,)`."""
        watchdog.alive()
        reference, answers = log_probabilities(teacher_scores), np.argmax(teacher_scores, axis=-1)
        self._images += len(labels)
        for i, score in enumerate(scores):
            predicted = np.argmax(score, axis=-1)
            self._right[i] += np.sum(predicted == labels)
            self._agreeing[i] += np.sum(predicted == answers)
            self._divergence[i] += np.sum(np.exp(reference) * (reference - log_probabilities(score)))

    def add_up(self, team: Team) -> None:
        """Count what the others of a team have marked, too."""
        counted = [self._right, self._agreeing, self._divergence, np.array([self._images])]
        added = add_up_all(team, [np.asarray(each, np.float64) for each in counted])
        self._right, self._agreeing, self._divergence, self._images = *added[:3], float(added[3][0])

    @property
    def marks(self) -> list[Marks]:
        right, agreeing = self._right / self._images, self._agreeing / self._images
        return [
            Marks(float(r) if self._labelled else None, float(a), float(d))
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


def mark(
    teacher: keras.Model,
    models: Sequence[keras.Model],
    batches: Iterable[tuple[Any, Any]],
    labelled: bool,
    team: Team = ALONE,
) -> list[Marks]:
    """Return the marks of each model, in one pass over the images.

    Args:
        teacher: what the models are compared with; scores of shape `(batch, classes)`.
        models: any number, the teacher itself among them if wanted.
        batches: pairs of images and integer labels of shape `(batch,)`.
        labelled: whether the labels mean anything.
        team: those whose batches count, too.
    """
    marking = Marking(len(models), labelled)
    for images, labels, count in in_one_size(batches):
        reference = np.asarray(teacher.predict_on_batch(images))[:count]
        scores = [reference if m is teacher else np.asarray(m.predict_on_batch(images))[:count] for m in models]
        marking.add(reference, scores, np.asarray(labels))
    marking.add_up(team)
    return marking.marks


def accuracy(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> float:
    """Return the share of images whose largest score is at their label."""
    return mark(model, [model], batches, labelled=True)[0].measure


def forward_rate(model: keras.Model, images: Any, repeats: int = 3) -> float:
    """Return the multiply-accumulates per second of the model's forward pass on these images, the median of a few."""
    model.predict_on_batch(images)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return count_macs(model) * len(images) / statistics.median(seconds)


def are_probabilities(scores: np.ndarray) -> bool:
    """Return whether outputs of shape `(batch, classes)` are probabilities (each row sums to one) and not logits."""
    return bool(np.all(scores >= 0) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3))


def ends_in_probabilities(model: keras.Model, images: Any) -> bool:
    """Return whether the outputs for these images are probabilities and not logits."""
    return are_probabilities(np.asarray(model.predict_on_batch(images), dtype=np.float64))
