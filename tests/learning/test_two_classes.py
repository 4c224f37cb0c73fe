"""A network with one output counts as a classifier of two classes, in metrics, losses and the scores of blocks."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd.blockwise import scoring
from pbd.config import StudentConfig
from pbd.learning import distillation, losses, metrics
from pbd.networks import graph, heads
from pbd.records import BlockKey

pytestmark = pytest.mark.jax

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(12, 6, 6, 2)).astype(np.float32)
LABELS = np.arange(12) % 2
SINGLE_HEADS: dict[str, Callable[[Any], Any]] = {
    "Dense sigmoid": lambda x: layers.Dense(1, activation="sigmoid")(x),
    "Dense": lambda x: layers.Dense(1)(x),
    "Activation": lambda x: layers.Activation("sigmoid")(layers.Dense(1)(x)),
    "operation": lambda x: keras.ops.sigmoid(layers.Dense(1)(x)),
    "linear": lambda x: layers.Activation("linear")(layers.Dense(1)(x)),
}


def network(head: Callable[[Any], Any], seed: int = 0) -> keras.Model:
    """Return a flat network whose head is called on the outputs of a convolution; the weights follow from the seed."""
    inputs = keras.Input(IMAGES.shape[1:])
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    model = graph.flatten(keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x))))
    draws = np.random.default_rng(seed)
    model.set_weights([draws.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def logits_of(model: keras.Model) -> np.ndarray:
    return np.asarray(heads.remove(model)(IMAGES))


def two_outputs(model: keras.Model) -> keras.Model:
    """Return the network of two outputs that answers as this network of one output."""
    z = heads.remove(model).outputs[0]
    outputs = layers.Softmax()(layers.Concatenate()([0.0 * z, z]))
    return keras.Model(model.inputs[0], outputs)


@pytest.mark.parametrize("head", SINGLE_HEADS)
def test_one_output_has_the_metrics_of_two(head: str) -> None:
    teacher, student = network(SINGLE_HEADS[head]), network(SINGLE_HEADS[head], seed=1)
    batches = [(IMAGES[:8], LABELS[:8]), (IMAGES[8:], LABELS[8:])]
    (single,) = metrics.evaluate(teacher, [student], batches, labelled=True)
    (double,) = metrics.evaluate(two_outputs(teacher), [two_outputs(student)], batches, labelled=True)
    assert single.accuracy == double.accuracy == np.mean((logits_of(student)[:, 0] > 0) == LABELS)
    assert single.agreement == double.agreement
    assert single.kl == pytest.approx(double.kl, rel=1e-4)
    assert single.kl > 0.01


@pytest.mark.parametrize("head", SINGLE_HEADS)
def test_students_learn_two_logits(head: str) -> None:
    model = network(SINGLE_HEADS[head])
    outputs = distillation.logits_model(model, IMAGES).predict_on_batch(IMAGES)
    np.testing.assert_allclose(outputs, logits_of(model) * [[-0.5, 0.5]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["kd_kl", "cross_entropy", "mixed"])
def test_losses_are_those_of_two_classes(loss: str) -> None:
    teacher, student = (logits_of(network(SINGLE_HEADS["Dense"], seed)) for seed in (0, 1))
    function = losses.make_loss(StudentConfig(fine_tune_loss=loss))
    single = function(LABELS, *map(metrics.class_scores, (student, teacher)))
    double = function(LABELS, *(np.concatenate([0.0 * z, z], axis=1) for z in (student, teacher)))
    assert float(single) == pytest.approx(float(double), rel=1e-5)
    if loss == "cross_entropy":
        binary = keras.losses.binary_crossentropy(LABELS[:, None], student, from_logits=True)
        assert float(single) == pytest.approx(float(np.mean(binary)), rel=1e-5)


def test_blocks_are_scored_by_logits() -> None:
    teacher = network(SINGLE_HEADS["Dense sigmoid"])
    inputs = keras.Input(IMAGES.shape[1:])
    block = keras.Model(inputs, layers.Conv2D(4, 3, name="block")(inputs))
    scorer = scoring.GroupScorer(teacher, {BlockKey("conv", "random"): block})
    scores = np.asarray(scorer.predict_on_batch(IMAGES)["scores"])
    assert scores.shape == (12, 2, 1)
    np.testing.assert_allclose(scores[:, 0], logits_of(teacher), rtol=1e-4, atol=1e-5)


def test_a_saturated_sigmoid_has_finite_metrics() -> None:
    model = network(SINGLE_HEADS["Dense sigmoid"])
    model.set_weights([1e4 * weight for weight in model.get_weights()])
    (same,) = metrics.evaluate(model, [model], [(IMAGES, LABELS)], labelled=True)
    assert (same.agreement, same.kl) == (1.0, 0.0)


def test_a_sigmoid_per_class_counts_as_one_answer() -> None:
    """The class of the largest output; students learn the logits before the sigmoid."""
    model = network(layers.Dense(3, activation="sigmoid"))
    z = logits_of(model)
    np.testing.assert_allclose(metrics.predict(model, IMAGES), z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(distillation.logits_model(model, IMAGES).predict_on_batch(IMAGES), z, rtol=1e-5)
    (measured,) = metrics.evaluate(model, [model], [(IMAGES, z.argmax(1))], labelled=True)
    assert measured.accuracy == 1.0
