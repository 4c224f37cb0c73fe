"""Losses of feature maps have the values of published code and compare images within parts only; gradients are finite.

The literals come from RepDistiller (github.com/HobbitLong/RepDistiller, commit b84f547), `distiller_zoo` and, for CRD,
`crd/criterion.py` with the scores of the batch, run with PyTorch 2.15 on the tensors of `tensors`, channels first.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pbd.learning.losses import feature_maps, relations

pytestmark = pytest.mark.usefixtures("eager")

SHAPES = ((6, 4, 4, 5), (6, 4, 4, 7), (6, 9, 9, 5), (6, 4, 4, 5), (6, 8, 8, 3), (6, 8, 8, 3))
STUDENT, TEACHER, LARGE, ALIKE, STUDENT_BEFORE, TEACHER_BEFORE = range(6)


def tensors() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype("float32") for shape in SHAPES]


def corners(maps: np.ndarray) -> np.ndarray:
    """Return embeddings of 5 values: the first channels of the first position."""
    return maps[:, 0, 0, :5]


def pooled_hint(student: Any, teacher: Any) -> Any:
    return feature_maps.hint(*feature_maps.same_size(student, teacher))


PUBLISHED: dict[str, tuple[Callable[[list[Any]], Any], float]] = {
    "at": (lambda t: feature_maps.attention_transfer(t[STUDENT], t[TEACHER]), 0.03409472852945328),
    "at, larger student": (lambda t: feature_maps.attention_transfer(t[LARGE], t[TEACHER]), 0.02909882552921772),
    "at, larger teacher": (lambda t: feature_maps.attention_transfer(t[TEACHER], t[LARGE]), 0.02909882552921772),
    "fsp": (
        lambda t: feature_maps.solution_flow((t[STUDENT_BEFORE], t[STUDENT]), (t[TEACHER_BEFORE], t[ALIKE])),
        0.03168334811925888,
    ),
    "mse": (lambda t: feature_maps.hint(t[STUDENT], t[ALIKE]), 1.8598893880844116),
    "mse, larger student": (lambda t: pooled_hint(t[LARGE], t[ALIKE]), 1.1028704643249512),
    "sp": (lambda t: relations.similarity_preserving(t[STUDENT], t[TEACHER], 6), 0.015250257216393948),
    "pkt": (lambda t: relations.probabilistic_transfer(t[STUDENT], t[TEACHER], 6), 0.030870994552969933),
    "crd": (lambda t: relations.contrastive(corners(t[STUDENT]), corners(t[TEACHER]), 6), 12.277487754821777),
    "sp, parts": (
        lambda t: relations.similarity_preserving(t[STUDENT], t[TEACHER], 3),
        (0.02578774467110634 + 0.019350606948137283) / 2,
    ),
    "pkt, parts": (
        lambda t: relations.probabilistic_transfer(t[STUDENT], t[TEACHER], 3),
        (0.010147628374397755 + 0.09569931030273438) / 2,
    ),
    "crd, parts": (
        lambda t: relations.contrastive(corners(t[STUDENT]), corners(t[TEACHER]), 3),
        (16.169788360595703 + 7.601654529571533) / 2,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_value_of_published_code(name: str) -> None:
    loss, published = PUBLISHED[name]
    assert float(loss(tensors())) == pytest.approx(published, rel=2e-5)


RELATIONS = {
    "sp": relations.similarity_preserving,
    "pkt": relations.probabilistic_transfer,
    "crd": relations.contrastive,
}


@pytest.mark.parametrize("name", RELATIONS)
def test_the_mean_over_parts(name: str) -> None:
    loss, (student, teacher, *_) = RELATIONS[name], map(corners, tensors())
    whole = float(loss(student, teacher, 2))
    parts = [float(loss(student[i : i + 2], teacher[i : i + 2], 2)) for i in (0, 2, 4)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)


@pytest.mark.parametrize("name", ["at", "fsp", "mse", "sp", "pkt"])
def test_zero_if_the_student_is_the_teacher(name: str) -> None:
    same = tensors()
    same[STUDENT] = same[ALIKE] = same[TEACHER]
    same[STUDENT_BEFORE] = same[TEACHER_BEFORE]
    assert float(PUBLISHED[name][0](same)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", ["at", "fsp", "mse", "sp", "pkt", "crd"])
def test_the_gradient_of_a_map_of_zeros_is_finite(name: str) -> None:
    import tensorflow as tf

    values: list[Any] = list(map(tf.constant, tensors()))
    values[STUDENT] = tf.zeros_like(values[STUDENT])
    with tf.GradientTape() as tape:
        tape.watch(values[STUDENT])
        loss = PUBLISHED[name][0](values)
    assert np.isfinite(np.asarray(tape.gradient(loss, values[STUDENT]))).all()


def test_pooling_averages_windows() -> None:
    maps = np.arange(2 * 4 * 6 * 1, dtype="float32").reshape(2, 4, 6, 1)
    expected = maps.reshape(2, 2, 2, 3, 2, 1).mean((2, 4))
    np.testing.assert_allclose(np.asarray(feature_maps.pooled(maps, 2, 3)), expected, rtol=1e-6)
    assert feature_maps.pooled(maps, 4, 6) is maps
    np.testing.assert_allclose(np.asarray(feature_maps.unit_length(maps + 1.0)), np.ones(maps.shape), rtol=1e-6)
