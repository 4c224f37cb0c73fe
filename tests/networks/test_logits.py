"""Logits: the network before its softmax, whatever computes the softmax."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd.networks import graph, heads
from tests.helpers.small_graphs import SHAPE, conv, difference, images, predict, swap_all

pytestmark = pytest.mark.usefixtures("fresh_names")

layers = keras.layers


def dense_softmax(x: Any) -> Any:
    return layers.Dense(5, activation="softmax", name="head", bias_initializer="normal")(x)


def shared_softmax(x: Any) -> Any:
    """A softmax that attends over the channels before it ends the network."""
    softmax = layers.Activation("softmax", name="scores")
    return softmax(layers.Dense(5, name="head", bias_initializer="normal")(layers.Multiply()([x, softmax(x)])))


def plain_head(x: Any) -> Any:
    return layers.Dense(5, name="head", bias_initializer="normal")(x)


HEADS: dict[str, Callable[[Any], Any]] = {
    "in the dense layer": dense_softmax,
    "layer": lambda x: layers.Softmax(name="scores")(plain_head(x)),
    "activation layer": lambda x: layers.Activation("softmax", name="scores")(plain_head(x)),
    "operation": lambda x: keras.ops.softmax(plain_head(x)),
    "over a reshape": lambda x: layers.Activation("softmax")(layers.Reshape((5,))(plain_head(x))),
    "shared with an attention": shared_softmax,
}


def probabilistic(head: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(conv("b")(conv("a", activation="relu")(inputs)))
    return keras.Model(inputs, head(x), name="net")


@pytest.mark.parametrize("case", HEADS)
def test_logits_stop_before_the_softmax(case: str) -> None:
    flat = graph.flatten(probabilistic(HEADS[case]))
    before = heads.remove(flat)
    scores, probabilities = predict(before, images()), predict(flat, images())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert scores.shape == (3, 5)
    assert np.abs(scores.sum(axis=1) - 1.0).min() > 1e-3, "not normalised"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(keras.ops.softmax(scores)), probabilities, atol=1e-6)
    assert {layer.name for layer in before.layers} <= {layer.name for layer in flat.layers}
    assert all(flat.get_layer(layer.name) is layer for layer in before.layers), "on the same layers"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_stop_before_an_activation_whose_outputs_are_cast(activation: str) -> None:
    """As the guide of Keras to mixed precision casts them, by a linear activation."""

    def head(x: Any) -> Any:
        return layers.Activation("linear", dtype="float32")(layers.Dense(5, activation=activation, name="scores")(x))

    flat = graph.flatten(probabilistic(head))
    scores = predict(heads.remove(flat), images())
    of_scores = keras.ops.convert_to_numpy(getattr(keras.ops, activation)(scores))
    np.testing.assert_allclose(of_scores, predict(flat, images()), atol=1e-6)
    assert heads.head_of(flat) is heads.Head[activation.upper()]
    assert np.abs(scores - predict(flat, images())).max() > 0.01


@pytest.mark.parametrize(
    "head", [plain_head, lambda x: layers.Dense(5, activation="elu")(x), lambda x: layers.LeakyReLU()(plain_head(x))]
)
def test_logits_of_a_network_without_softmax_are_its_outputs(head: Callable[[Any], Any]) -> None:
    flat = graph.flatten(probabilistic(head))
    assert difference(flat, heads.remove(flat)) == 0.0


@pytest.mark.parametrize("case", HEADS)
def test_a_softmax_stays_exact_through_surgery_and_files(case: str, tmp_path: Path) -> None:
    model = probabilistic(HEADS[case])
    before = predict(model, images())
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    np.testing.assert_array_equal(predict(model, images()), before)
    assert flat.count_params() == model.count_params()
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    assert difference(model, loaded) == 0.0
    assert difference(heads.remove(flat), heads.remove(loaded)) == 0.0
    assert difference(flat, graph.flatten(loaded)) == 0.0, "what is split stays as it is"
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["a", "b"]


def test_a_nested_model_that_ends_in_softmax_is_split_too() -> None:
    inputs = keras.Input((16,))
    top = keras.Model(inputs, dense_softmax(layers.Dense(7, name="hidden")(inputs)), name="top")
    model = probabilistic(lambda x: top(x))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert heads.remove(flat).layers[-1].name == "head"
    scores = keras.ops.softmax(predict(heads.remove(flat), images()))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(scores), predict(model, images()), atol=1e-6)


def test_a_softmax_in_the_middle_is_left_alone() -> None:
    flat = graph.flatten(probabilistic(lambda x: plain_head(layers.Dense(6, activation="softmax", name="gate")(x))))
    assert flat.get_layer("gate").activation is keras.activations.softmax
    assert difference(flat, heads.remove(flat)) == 0.0
