"""Flattening: nested and sequential models become one functional model that computes and learns the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.errors import BadInputError
from pbd.networks import graph
from tests.helpers.small_graphs import BLOCK, SHAPE, classifier, conv, difference, images, predict, reasons, swap_all

pytestmark = pytest.mark.usefixtures("fresh_names")

layers = keras.layers


def small_body(trainable: bool = True) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.BatchNormalization(name="norm")(conv("conv")(inputs))
    model = keras.Model(inputs, layers.ReLU(name="relu")(x), name="inner")
    model.trainable = trainable
    return model


def small_sequence() -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), conv("conv"), layers.BatchNormalization(name="norm")], name="inner")


@pytest.mark.parametrize("inner", [small_body, small_sequence])
@pytest.mark.parametrize("settings", [{}, {"training": False}])
def test_nested_models_are_unfolded_exactly(
    inner: Callable[[], keras.Model], settings: dict[str, bool], tmp_path: Path
) -> None:
    model = classifier(lambda x: conv("conv")(inner()(x, **settings)))
    flat = graph.flatten(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert difference(model, flat) == 0.0
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["conv", "net_conv"]


@pytest.mark.parametrize("inner", [small_body, small_sequence])
@pytest.mark.parametrize("settings", [{}, {"training": False}])
def test_a_nested_model_learns_as_it_did(inner: Callable[[], keras.Model], settings: dict[str, bool]) -> None:
    """In training, Keras overrules `training=False` of the call: what matters is that the copy does the same."""
    model = classifier(lambda x: inner()(x, **settings))
    flat = graph.flatten(model)
    one, other = (keras.ops.convert_to_numpy(m(images(), training=True)) for m in (model, flat))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        model.get_layer("inner").get_layer("norm").moving_mean, flat.get_layer("norm").moving_mean
    )
    assert not np.allclose(one, predict(model, images()))


def test_a_normalisation_inside_another_layer_keeps_its_statistics() -> None:
    normalise = layers.Normalization(mean=None)
    normalise.adapt(3.0 * images() + 5.0)
    model = classifier(lambda x: conv("conv")(layers.Pipeline([layers.Rescaling(2.0), normalise])(x)))
    assert difference(model, graph.flatten(model)) == 0.0


def test_a_layer_may_have_the_name_of_the_outer_input() -> None:
    inputs = keras.Input(SHAPE)
    inner = keras.Model(inputs, layers.ReLU(name="image")(conv("conv")(inputs)), name="inner")
    image = keras.Input(SHAPE, name="image")
    model = keras.Model(image, layers.GlobalAveragePooling2D()(inner(image)))
    assert difference(model, graph.flatten(model)) == 0.0


@pytest.mark.parametrize(
    "change", [lambda model: model.quantize("int8"), lambda model: model.get_layer("conv").enable_lora(2)]
)
def test_layers_with_other_weights_than_those_of_their_type_are_refused(change: Callable[[keras.Model], None]) -> None:
    model = classifier(conv("conv"))
    change(model)
    with pytest.raises(BadInputError, match="quantised or with LoRA adapters"):
        graph.flatten(model)


def test_nested_models_with_the_same_names_at_every_depth() -> None:
    def outer(name: str) -> keras.Model:
        inputs = keras.Input(SHAPE)
        return keras.Model(inputs, conv("conv", 8)(layers.ReLU()(small_sequence()(inputs))), name=name)

    model = classifier(lambda x: conv("conv")(outer("three")(outer("two")(outer("one")(x)))))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert len(enumerate_tasks(flat, blocks.get(BLOCK))) == 7


def test_operations_with_the_same_name_in_a_nested_model(tmp_path: Path) -> None:
    inputs = keras.Input(SHAPE)
    keras.Model(inputs, conv("inner_conv")(inputs * 2.0), name="inner").save(tmp_path / "inner.keras")
    inner = keras.models.load_model(tmp_path / "inner.keras")
    keras.utils.clear_session(free_memory=False)
    model = classifier(lambda x: inner(x * 3.0))
    assert difference(model, graph.flatten(model)) == 0.0


def test_a_nested_model_called_twice_is_one_set_of_weights() -> None:
    inputs = keras.Input(SHAPE)
    inner = keras.Model(inputs, conv("conv", 8)(inputs), name="inner")
    model = classifier(lambda x: conv("last")(inner(inner(x))))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert flat.count_params() == model.count_params()
    assert "called 2 times" in str(reasons(flat)["conv"])


def test_a_frozen_nested_model_computes_the_same() -> None:
    model = classifier(lambda x: small_body(trainable=False)(x))
    assert difference(model, graph.flatten(model)) == 0.0


def test_a_sequential_model_becomes_functional(tmp_path: Path) -> None:
    stack = [conv("a"), layers.MaxPooling2D(), conv("b", activation="relu"), layers.Flatten(), layers.Dense(5)]
    model = keras.Sequential([keras.Input(SHAPE), *stack])
    flat = graph.flatten(model)
    assert type(flat).__name__ == "Functional"
    assert difference(model, flat) == 0.0
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["a", "b"]


def test_free_sizes_are_fixed_by_the_images() -> None:
    model = classifier(lambda x: conv("c")(x), shape=(None, None, 8))
    flat = graph.flatten(model, SHAPE)
    assert flat.input_shape == (None, *SHAPE)
    assert difference(model, flat) == 0.0
    with pytest.raises(BadInputError, match=r"takes images of shape \(None, None, 8\)\. Received: \(12, 12, 3\)"):
        graph.flatten(model, (12, 12, 3))


class Subclassed(keras.Model):
    def call(self, x: Any) -> Any:
        return x


def test_what_cannot_be_compressed_is_refused_in_one_line() -> None:
    one, two = keras.Input(SHAPE), keras.Input(SHAPE)
    x = conv("c")(one)
    refused = {
        "2 inputs, 1 outputs": keras.Model([one, two], layers.Add()([x, conv("d")(two)])),
        "1 inputs, 2 outputs": keras.Model(one, [x, layers.ReLU()(x)]),
        "Received: Subclassed": Subclassed(),
        "Received: Sequential": keras.Sequential([conv("c")]),
    }
    for words, model in refused.items():
        with pytest.raises(BadInputError, match=words) as caught:
            graph.flatten(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="'net' with none") as caught:
        enumerate_tasks(graph.flatten(classifier(conv("c", kernel=1))), blocks.get(BLOCK))
    assert "\n" not in str(caught.value)


def test_a_mix_of_dictionary_and_list_outputs_is_read() -> None:
    inputs = keras.Input(SHAPE)
    scores = layers.Dense(5)(layers.GlobalAveragePooling2D()(conv("c")(inputs)))
    for outputs in ([scores], {"scores": scores}):
        flat = graph.flatten(keras.Model(inputs, outputs))
        assert flat.output.shape == (None, 5)
        assert predict(flat, images()).shape == (3, 5)


def test_an_adapted_normalization_keeps_its_statistics() -> None:
    normalise = keras.layers.Normalization()
    normalise.adapt(np.random.default_rng(0).normal(120, 60, (64, 8, 8, 3)))
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(normalise(inputs))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    assert np.abs(graph.flatten(model).predict(images, verbose=0) - expected).max() == 0.0


def test_inputs_that_are_given_by_keyword_become_positional() -> None:
    model = classifier(lambda x: small_body()(inputs=layers.BatchNormalization()(inputs=x)))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert not any(node.arguments.kwargs.get("inputs") for layer in flat.layers for node in layer._inbound_nodes)
