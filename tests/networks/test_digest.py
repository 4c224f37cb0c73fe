"""The digest of a network: equal for a network that is built or loaded again, different if anything else differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest

from pbd.networks import files, graph
from pbd.networks.digest import model_digest


def inner(units: int, name: str | None) -> keras.Model:
    """Return a model that lies in a wrapper, where it stays whole."""
    inputs = keras.Input((8, 4))
    return keras.Model(inputs, keras.layers.Dense(units, name=name)(inputs), name=name and f"{name}_model")


def residual(change: str = "", name: Callable[[str], str | None] = lambda _: None) -> keras.Model:
    """Return a small residual network; one setting, one connection or one weight differs for each `change`."""
    keras.utils.set_random_seed(1)
    dilated = 2 if change == "dilation" else 1
    inputs = keras.Input((8, 8, 3), name=name("images"))
    x = keras.layers.RandomFlip("vertical" if change == "random layer" else "horizontal", name=name("flip"))(inputs)
    x = first = keras.layers.Conv2D(4, 3, padding="same", name=name("first"))(x)
    activation = keras.layers.LeakyReLU(0.1 if change == "slope" else 0.3)
    settings = {"padding": "same", "dilation_rate": dilated, "activation": activation}
    x = keras.layers.Conv2D(4, 3, name=name("second"), **settings)(x)
    x = keras.layers.Add(name=name("add"))([x, x if change == "connection" else first])
    x = keras.layers.BatchNormalization(epsilon=0.01 if change == "epsilon" else 0.001, name=name("norm"))(x)
    x = (keras.ops.tanh if change == "operation" else keras.ops.relu)(x)
    x = keras.layers.TimeDistributed(inner(4 if change == "inner" else 5, name("inner")))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name=name("head"))(x), name=name("model"))
    if change == "weight":
        model.set_weights([value + 1e-3 for value in model.get_weights()])
    return graph.flatten(model)


def test_names_and_saving_do_not_change_the_digest(tmp_path: Path) -> None:
    digest = model_digest(residual())
    assert model_digest(residual()) == digest  # Keras counts unnamed layers: these have other names
    assert model_digest(residual(name=lambda part: f"my_{part}")) == digest
    residual().save(tmp_path / "model.keras")
    assert model_digest(files.load_own(tmp_path / "model.keras")) == digest


CHANGES = ("dilation", "slope", "connection", "epsilon", "operation", "inner", "random layer", "weight")


def test_any_other_difference_changes_the_digest() -> None:
    digests: dict[str, Any] = {change: model_digest(residual(change)) for change in ("", *CHANGES)}
    assert len(set(digests.values())) == len(digests), digests


@pytest.mark.parametrize("name", ["conv", "relu", "float32", "images"])
def test_a_name_that_is_also_a_setting_does_not_hide_a_difference(name: str) -> None:
    def one_layer(activation: str) -> keras.Model:
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Conv2D(2, 3, activation=activation, name=name), keras.layers.GlobalAveragePooling2D()]
        return graph.flatten(keras.Sequential([keras.Input((8, 8, 1)), *layers]))

    assert model_digest(one_layer("relu")) != model_digest(one_layer("tanh"))
