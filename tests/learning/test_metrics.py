"""Multiply-accumulates, metrics over batches of different size, probabilities distinguished from logits."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from pbd.collective import Collective
from pbd.costs import calibration
from pbd.learning import metrics
from pbd.learning.class_counts import ClassCounts
from pbd.networks import cost
from tests.helpers.thread_collective import run_threads

layers = keras.layers


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (layers.Conv2D(5, 3), 8 * 8 * 9 * 4 * 5),
        (layers.Conv2D(5, 3, padding="same", strides=2, use_bias=False), 5 * 5 * 9 * 4 * 5),
        (layers.Conv2D(6, 3, groups=2), 8 * 8 * 9 * 2 * 6),
        (layers.Conv2D(5, (1, 7), dilation_rate=(1, 1)), 10 * 4 * 7 * 4 * 5),
        (layers.Conv2D(5, 3, data_format="channels_first"), 8 * 2 * 9 * 10 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 8 * 8 * 9 * 4 * 2),
        (layers.SeparableConv2D(5, 3, strides=2, padding="same"), 5 * 5 * (9 * 4 + 4 * 5)),
        (layers.Conv2DTranspose(5, 3, strides=2), 10 * 10 * 9 * 4 * 5),
        (layers.Dense(7), 10 * 10 * 4 * 7),
        (layers.BatchNormalization(), 0),
        (layers.MaxPooling2D(), 0),
    ],
)
def test_multiply_accumulates_of_a_layer(layer: keras.Layer, macs: int) -> None:
    inputs = keras.Input((10, 10, 4))
    model = keras.Model(inputs, layer(inputs))
    assert cost.layer_macs(layer) == macs
    assert cost.count_macs(model) == macs
    layer.trainable = False
    assert cost.layer_macs(layer) == macs


def test_a_shared_layer_counts_at_each_call_of_this_model_only() -> None:
    inputs = keras.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    once = shared(inputs)
    model = keras.Model(inputs, shared(shared(once)))
    assert cost.count_macs(model) == 3 * 36 * 9 * 16
    assert cost.count_macs(keras.Model(inputs, once)) == 36 * 9 * 16
    assert {layer.name: calls for layer, calls in cost.layer_calls(model)}["shared"] == 3


def test_parameters_include_batch_statistics() -> None:
    inputs = keras.Input((6, 6, 4))
    assert cost.count_params(keras.Model(inputs, layers.BatchNormalization()(inputs))) == 16


def scores(offset: int) -> keras.Model:
    """Return a model whose largest output is at the image's value plus an offset, modulo 4."""
    inputs = keras.Input((1,))
    shift = layers.Dense(4, use_bias=False, name="shift")
    model = keras.Model(inputs, shift(layers.CategoryEncoding(4, output_mode="one_hot")(inputs)))
    shift.set_weights([np.roll(np.eye(4, dtype="float32"), offset, axis=1)])
    return model


UNEVEN = np.array([[0], [1], [2], [3], [0]])
LABELS = np.array([0, 1, 2, 0, 1])


def uneven_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(UNEVEN[:4], LABELS[:4]), (UNEVEN[4:], LABELS[4:])]


def test_accuracy_weighs_images_and_not_batches() -> None:
    assert metrics.accuracy(scores(0), uneven_batches()) == pytest.approx(3 / 5)
    results = metrics.evaluate(scores(0), [scores(0), scores(1)], uneven_batches(), labelled=True)
    assert [result.accuracy for result in results] == pytest.approx([3 / 5, 2 / 5])


def test_answers_are_counted_class_by_class_over_all_workers() -> None:
    """The images have the labels 0, 1, 2, 0, 1; the teacher answers 0, 1, 2, 3, 0, the other network 1, 2, 3, 0, 1."""
    whole = ClassCounts(4)
    metrics.evaluate(scores(0), [scores(0), scores(1)], uneven_batches(), labelled=True, counts=whole)
    assert whole.teacher[0].tolist() == [1, 0, 0, 1]
    assert whole.student[0].tolist() == [1, 1, 0, 0]
    assert whole.flips.tolist() == [3, 2]

    def member(collective: Collective) -> ClassCounts:
        counts, batches = ClassCounts(4), uneven_batches()[collective.index :: 2]
        metrics.evaluate(scores(0), [scores(1)], batches, labelled=True, collective=collective, counts=counts)
        return counts

    for part in run_threads(2, member):
        assert np.array_equal(part.teacher, whole.teacher)
        assert np.array_equal(part.student, whole.student)
        assert part.flips.tolist() == [3, 2]


def test_a_smaller_last_batch_is_padded_and_counted() -> None:
    (first, labels, count), (last, last_labels, last_count) = metrics.pad_batches(uneven_batches())
    assert (count, last_count) == (4, 1)
    assert np.array_equal(first, UNEVEN[:4])
    assert np.array_equal(last, np.repeat(UNEVEN[4:], 4, axis=0))
    assert np.array_equal(labels, LABELS[:4])
    assert np.array_equal(last_labels, LABELS[4:]), "labels are those of the images that count"


def test_agreement_is_with_the_teacher_and_not_with_the_labels() -> None:
    results = metrics.evaluate(scores(1), [scores(0), scores(1)], uneven_batches(), labelled=True)
    assert [result.accuracy for result in results] == pytest.approx([3 / 5, 2 / 5])
    assert [result.agreement for result in results] == [0.0, 1.0]
    assert [result.kl > 0.1 for result in results] == [True, False]


def test_without_labels_the_agreement_is_the_measure() -> None:
    teacher, other = scores(0), scores(1)
    for labelled, measures in ((True, [3 / 5, 2 / 5]), (False, [1.0, 0.0])):
        results = metrics.evaluate(teacher, [teacher, other], uneven_batches(), labelled)
        assert [result.score for result in results] == pytest.approx(measures)
    assert [result.accuracy for result in results] == [None, None]


def test_an_accuracy_of_zero_is_a_score() -> None:
    assert metrics.Metrics(accuracy=0.0, agreement=0.7, kl=0.1).score == 0.0


def test_the_data_is_read_once_for_all_models() -> None:
    def once() -> Iterator[tuple[Any, Any]]:
        yield np.array([[0], [1]]), np.array([0, 0])

    teacher = scores(0)
    results = metrics.evaluate(teacher, [scores(0), teacher, scores(1)], once(), labelled=True)
    assert [result.accuracy for result in results] == [0.5, 0.5, 0.0]


def random_logits(seed: int, count: int = 6, spread: float = 3.0) -> np.ndarray:
    return spread * np.random.default_rng(seed).normal(size=(count, 5)).astype("float32")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype("float64"))
    return powers / powers.sum(axis=1, keepdims=True)


def test_logarithms_of_probabilities_are_the_same_from_logits_and_from_probabilities() -> None:
    logits = random_logits(0)
    expected = np.log(softmax(logits))
    np.testing.assert_allclose(metrics.log_probabilities(logits), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.log_probabilities(softmax(logits).astype("float32")), expected, rtol=1e-4)


def test_extreme_scores_have_finite_logarithms() -> None:
    assert np.isfinite(metrics.log_probabilities(np.array([[1e4, -1e4, 0.0]]))).all()
    assert np.isfinite(metrics.log_probabilities(np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))).all()


@pytest.mark.parametrize("shapes", [(False, False), (True, True), (False, True), (True, False)], ids=str)
def test_the_divergence_is_from_the_teacher_whatever_the_outputs_are(shapes: tuple[bool, bool]) -> None:
    """Logits or probabilities, either of them; batch by batch, but one mean over all images."""
    teacher, other = random_logits(0), random_logits(1)
    p, q = softmax(teacher), softmax(other)
    accumulator = metrics.MetricAccumulator(2, labelled=False)
    given = [p if shapes[0] else teacher, q if shapes[1] else other]
    for rows in (slice(0, 4), slice(4, 6)):
        accumulator.add(given[0][rows], [given[1][rows], given[0][rows]], np.zeros(len(given[0][rows])))
    one, itself = accumulator.result()
    assert one.kl == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-5)
    assert itself.kl == 0.0
    assert itself.agreement == 1.0


def test_no_divergence_is_negative() -> None:
    teacher = random_logits(0, count=1)
    for seed in range(1, 20):
        for distance in (1e-3, 1.0):
            accumulator = metrics.MetricAccumulator(1, labelled=False)
            accumulator.add(teacher, [teacher + distance * random_logits(seed, count=1)], np.zeros(1))
            assert accumulator.result()[0].kl > 0.0


def test_the_forward_rate_is_that_of_the_median_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(ticks))
    inputs = keras.Input((10,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    monkeypatch.setattr(model, "predict_on_batch", lambda images: images)
    assert calibration.forward_rate(model, np.zeros((8, 10))) == 30 * 8 / 2.0


@pytest.mark.parametrize(
    ("activation", "probabilities"), [("softmax", True), ("linear", False), ("relu", False), ("sigmoid", False)]
)
def test_probabilities_are_distinguished_from_logits(activation: str, probabilities: bool) -> None:
    inputs = keras.Input((6,))
    dense = layers.Dense(4, activation=activation, kernel_initializer=keras.initializers.RandomNormal(seed=0))
    images = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    assert metrics.outputs_probabilities(keras.Model(inputs, dense(inputs)), images) is probabilities


@pytest.mark.parametrize("classes", [10, 1000])
def test_probabilities_in_bfloat16_are_recognised(classes: int) -> None:
    scores = np.random.default_rng(0).normal(size=(64, classes)).astype("float32")
    rounded = keras.ops.cast(keras.ops.softmax(scores), "bfloat16")
    assert metrics.are_probabilities(np.asarray(keras.ops.cast(rounded, "float32"), np.float64))
