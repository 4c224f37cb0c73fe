"""Losses that compare how the images of a batch relate to one another in two networks: SP, PKT and CRD.

Each takes features `(batch, ...)`, splits the batch into parts of `size` images, compares images within each part only,
and returns the mean over the parts. A part is what one worker computes together, so the loss is the same for every
number of workers. The defaults are those of the papers' code; the tests compare with RepDistiller's values.
"""

import math
from typing import Any

import keras

from pbd.learning.losses.feature_maps import unit_length

EPSILON = 1e-7
"""Added to similarities before logarithms and divisions, as in the papers' code."""


def similarity_preserving(student: Any, teacher: Any, size: int) -> Any:
    """SP: squared error of the similarities of all pairs of images (Tung and Mori 2019, arXiv:1907.09682).

    The similarity of two images is the dot product of their features; each image's similarities are divided by their
    norm. Student and teacher may have features of different shapes.
    """
    return keras.ops.mean(keras.ops.square(_similarities(student, size) - _similarities(teacher, size)))


def _similarities(features: Any, size: int) -> Any:
    parts = _parts(features, size)
    return unit_length(_products(parts, parts))


def probabilistic_transfer(student: Any, teacher: Any, size: int) -> Any:
    """PKT: divergence of the similarities as probabilities (Passalis and Tefas 2018, arXiv:1803.10837).

    The cosine similarities of an image, scaled to [0, 1], are divided by their sum. The divergence is averaged over all
    pairs of images. Of feature maps, the mean over the positions counts.
    """
    ops = keras.ops
    p, q = _probabilities(teacher, size), _probabilities(student, size)
    return ops.mean(p * ops.log((p + EPSILON) / (q + EPSILON)))


def _probabilities(features: Any, size: int) -> Any:
    parts = unit_length(_parts(position_mean(features), size))
    scaled = (_products(parts, parts) + 1.0) / 2.0
    return scaled / keras.ops.sum(scaled, axis=-1, keepdims=True)


def contrastive(student: Any, teacher: Any, size: int, temperature: float = 0.07) -> Any:
    """CRD: tell which embedding of the other network is of the same image (Tian et al. 2020, arXiv:1910.10699).

    The negatives are the other images of the part. The paper draws 16,384 from a memory of the whole data set, which
    pbd does not have. For N negatives, the loss of an anchor is -log h(positive) - sum of log(1 - h(negative)), with
    h(score) = exp(score) / (exp(score) + N mean(exp(scores))); the mean is over the part, and no gradient flows into
    it. Either network's embeddings serve as the anchors once; the two losses are added.

    Args:
        student: embeddings `(batch, values)`, from a trained dense layer on the student's features.
        teacher: embeddings of the same shape, from a trained dense layer on the teacher's features.
        size: images of a part; at least 2.
        temperature: divides the dot products of the embeddings, which are scaled to length 1.
    """
    ops, negatives = keras.ops, size - 1
    scores = _products(unit_length(_parts(student, size)), unit_length(_parts(teacher, size))) / temperature
    values = ops.exp(scores)
    noise = negatives * ops.stop_gradient(ops.mean(values, axis=(1, 2), keepdims=True))
    same = ops.eye(size, dtype=values.dtype)
    positive = ops.log(values / (values + noise)) * same
    negative = ops.log(noise / (values + noise)) * (1.0 - same)
    # Student and teacher as anchors read the rows and the columns of the same matrix.
    return -2.0 * ops.mean(ops.sum(positive + negative, axis=(1, 2))) / size


def position_mean(features: Any) -> Any:
    """Return the mean over the positions of maps `(batch, height, width, channels)`; vectors as they are."""
    return keras.ops.mean(features, axis=(1, 2)) if len(features.shape) == 4 else features


def _parts(features: Any, size: int) -> Any:
    """Return features as vectors in parts, `(parts, size, values)`."""
    return keras.ops.reshape(features, (-1, size, math.prod(features.shape[1:])))


def _products(first: Any, second: Any) -> Any:
    """Return the dot products of all pairs of vectors in each part, `(parts, size, size)`."""
    return keras.ops.matmul(first, keras.ops.transpose(second, (0, 2, 1)))
