"""The logits of a network, whatever it ends in: what fine-tuning compares, and trains the student through."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from scipy import special

from pbd.config import StudentConfig
from pbd.data import Dataset
from pbd.learning import distillation
from pbd.networks import graph
from pbd.student import fine_tuning
from pbd.student.validation import validate
from tests.helpers.palette import (
    CLASSES,
    SHAPE,
    damage,
    ignore,
    make_dataset,
    moved_layers,
    predict,
    snapshot,
    some_images,
)

pytestmark = pytest.mark.usefixtures("eager")
layers = keras.layers


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


HEADS: dict[str, Callable[[Any], Any]] = {
    "logits": lambda x: layers.Dense(CLASSES, name="head")(x),
    "dense": lambda x: layers.Dense(CLASSES, activation="softmax", name="head")(x),
    "softmax layer": lambda x: layers.Softmax()(layers.Dense(CLASSES, name="head")(x)),
    "activation layer": lambda x: layers.Activation("softmax")(layers.Dense(CLASSES, name="head")(x)),
}


def with_head(make: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="body")(inputs))
    return keras.Model(inputs, make(x))


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_inputs_of_the_softmax(head: str) -> None:
    images, model = some_images(), with_head(HEADS[head])
    found = predict(distillation.logits_model(graph.flatten(model), images), images)
    features = predict(keras.Model(model.inputs[0], model.get_layer("head").input), images)
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(found, features @ kernel + bias, rtol=1e-4, atol=1e-5)


def normalised(x: Any) -> Any:
    scores = keras.ops.exp(layers.Dense(CLASSES)(x))
    return scores / keras.ops.sum(scores, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "head", [normalised, lambda x: layers.Rescaling(1.0)(layers.Dense(CLASSES, activation="softmax")(x))]
)
def test_other_probabilities_get_a_logarithm(head: Callable[[Any], Any]) -> None:
    images, model = some_images(), graph.flatten(with_head(head))
    probabilities = predict(model, images)
    assert probabilities.sum(axis=-1) == pytest.approx(1.0)
    found = predict(distillation.logits_model(model, images), images)
    np.testing.assert_allclose(special.softmax(found, axis=-1), probabilities, rtol=1e-4)
    np.testing.assert_allclose(found, np.log(probabilities), rtol=1e-4, atol=1e-6)


def test_a_probability_of_zero_has_a_finite_logarithm() -> None:
    model = graph.flatten(with_head(lambda x: layers.Rescaling(1.0)(layers.Softmax()(1e4 * layers.Dense(CLASSES)(x)))))
    images = some_images()
    assert predict(model, images).min() == 0.0
    assert np.isfinite(predict(distillation.logits_model(model, images), images)).all()


def test_training_the_logits_model_trains_the_student(dataset: Dataset) -> None:
    teacher = graph.flatten(with_head(HEADS["dense"]))
    student = graph.flatten(teacher)
    damage(student, 1.0)
    before, teachers = snapshot(student), snapshot(teacher)
    start = validate(student, teacher, dataset)
    config = StudentConfig(fine_tune_epochs=4, fine_tune_learning_rate=0.02)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore)
    assert moved_layers(before, student) == {"body", "head"}
    assert moved_layers(teachers, teacher) == set()
    assert tuning.best.kl < 0.5 * start.kl
    assert predict(student, some_images()).sum(axis=-1) == pytest.approx(1.0), "still probabilities"
