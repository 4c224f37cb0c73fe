"""What pbd expects of the private attributes of Keras that `keras_internals` reads; a new version may break it."""

from typing import Any

import keras
import numpy as np
import pytest

from pbd.networks import keras_internals
from pbd.system import keras_state

layers = keras.layers


@pytest.fixture
def model() -> keras.Model:
    """A residual sum, a shared layer with a third call outside of the model, and an operation without a layer."""
    inputs = keras.Input((4,), name="inputs")
    shared = layers.Dense(4, name="shared")
    x = shared(inputs)
    y = shared(keras.ops.tanh(x))
    shared(layers.Dense(4, name="elsewhere")(inputs))
    return keras.Model(inputs, layers.Add(name="sum")([x, y]), name="small")


def test_a_functional_model_is_recognised(model: keras.Model) -> None:
    class Subclassed(keras.Model):
        pass

    assert keras_internals.is_functional(model)
    assert not keras_internals.is_functional(Subclassed())


def test_walk_runs_each_call_once_after_its_inputs(model: keras.Model) -> None:
    names: list[str] = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(operation.name)
        return operation(*args, **kwargs)

    images = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    outputs = keras_internals.walk(model, images, call)
    np.testing.assert_array_equal(keras.tree.flatten(outputs)[0], model(images))
    assert len(names) == 4
    assert [name for name in names if name in ("shared", "sum")] == ["shared", "shared", "sum"]


def test_walk_passes_other_operations_and_values_of_any_kind(model: keras.Model) -> None:
    depth_of_call: list[tuple[str, tuple[int, ...]]] = []

    def call(operation: str, *args: Any, **kwargs: Any) -> int:
        depths = tuple(keras.tree.flatten((args, kwargs)))
        depth_of_call.append((operation, depths))
        return 1 + max(depths)

    outputs = keras_internals.walk(model, 0, call, operation_for=lambda operation: operation.name.upper())
    assert keras.tree.flatten(outputs) == [4]
    assert depth_of_call[0] == ("SHARED", (0,))
    assert depth_of_call[-1] == ("SUM", (1, 3))


def test_calls_are_counted_within_the_model(model: keras.Model) -> None:
    counts = keras_internals.call_counts(model)
    assert {layer.name: counts[id(layer)] for layer in model.layers if layer.name in ("shared", "sum")} == {
        "shared": 2,
        "sum": 1,
    }


def test_the_call_that_computes_a_tensor_and_its_inputs_are_found(model: keras.Model) -> None:
    last, index = keras_internals.producer(model.outputs[0])
    assert (last.name, index) == ("sum", 0)
    first, second = keras_internals.call_inputs(last, index)
    shared = model.get_layer("shared")
    assert keras_internals.producer(first) == (shared, 0)
    assert keras_internals.producer(second) == (shared, 1)
    assert keras_internals.call_inputs(shared, 0)[0] is model.inputs[0]
    (before,) = keras_internals.call_inputs(shared, 1)
    assert keras_internals.call_inputs(*keras_internals.producer(before))[0] is first


def test_keras_looks_up_what_it_skips_when_it_saves() -> None:
    from keras.src.saving import saving_lib

    keras.utils.clear_session(free_memory=False)
    keras_state.remember_skipped_attributes()
    assert saving_lib.get_attr_skipset("Layer") is saving_lib.get_attr_skipset("Layer")
