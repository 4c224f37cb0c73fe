"""Losses that compare a student's feature maps with its teacher's image by image: AT, FSP and MSE.

Each returns a scalar, the mean over the images. Maps are `(batch, height, width, channels)`; of maps that differ in
height or width, the larger one is reduced to the smaller one by average pooling, as in RepDistiller, the code of Tian
et al. 2020 (arXiv:1910.10699), with whose values the tests compare.
"""

from typing import Any

import keras
import numpy as np

SMALLEST_SQUARE = 1e-24
"""Smaller squared norms count as this one, so that a map of zeros has a finite gradient."""


def attention_transfer(student: Any, teacher: Any) -> Any:
    """AT: squared error of the attention maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928).

    The attention at a position is the mean square over the channels; a map is divided by its norm. The numbers of
    channels may differ.
    """
    student, teacher = same_size(student, teacher)
    return keras.ops.mean(keras.ops.square(_attention(student) - _attention(teacher)))


def _attention(maps: Any) -> Any:
    ops = keras.ops
    attention = ops.mean(ops.square(maps), axis=-1)
    return unit_length(ops.reshape(attention, (-1, attention.shape[1] * attention.shape[2])))


def solution_flow(students: tuple[Any, Any], teachers: tuple[Any, Any]) -> Any:
    """FSP: squared error of the matrices of the flow of solution procedure (Yim et al. 2017, CVPR).

    The matrix of two layers holds the products of their channels, averaged over the positions.

    Args:
        students: maps of two layers of the student.
        teachers: maps of two layers of the teacher, each with as many channels as the student's.
    """
    return keras.ops.mean(keras.ops.square(_flow(*students) - _flow(*teachers)))


def _flow(first: Any, second: Any) -> Any:
    first, second = same_size(first, second)
    ops, positions = keras.ops, first.shape[1] * first.shape[2]
    first, second = (ops.reshape(maps, (-1, positions, maps.shape[-1])) for maps in (first, second))
    return ops.matmul(ops.transpose(first, (0, 2, 1)), second) / positions


def hint(student: Any, teacher: Any) -> Any:
    """MSE: mean squared error of the maps (hints, Romero et al. 2015, arXiv:1412.6550), which have one shape."""
    return keras.ops.mean(keras.ops.square(student - teacher))


def same_size(first: Any, second: Any) -> tuple[Any, Any]:
    """Return both maps in the smaller height and the smaller width; vectors `(batch, values)` as they are."""
    if len(first.shape) != 4 or len(second.shape) != 4:
        return first, second
    height, width = (min(first.shape[axis], second.shape[axis]) for axis in (1, 2))
    return pooled(first, height, width), pooled(second, height, width)


def pooled(maps: Any, height: int, width: int) -> Any:
    """Reduce maps by adaptive average pooling: output i of n is the mean of inputs floor(i h / n) to ceil((i+1) h / n).

    Args:
        maps: `(batch, h, w, channels)`.
        height: the height of the result, at most h.
        width: the width of the result, at most w.
    """
    if maps.shape[1] != height:
        maps = keras.ops.einsum("ih,bhwc->biwc", _windows(maps.shape[1], height), maps)
    if maps.shape[2] != width:
        maps = keras.ops.einsum("jw,bhwc->bhjc", _windows(maps.shape[2], width), maps)
    return maps


def _windows(size: int, parts: int) -> np.ndarray:
    """Return the weights of the inputs in the mean that is each output, `(parts, size)` float32."""
    weights = np.zeros((parts, size), np.float32)
    for part in range(parts):
        window = slice(part * size // parts, -(-(part + 1) * size // parts))
        weights[part, window] = 1.0 / (window.stop - window.start)
    return weights


def unit_length(vectors: Any) -> Any:
    """Return vectors along the last axis divided by their norms."""
    ops = keras.ops
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, SMALLEST_SQUARE))
