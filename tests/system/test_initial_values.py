"""Initial values that NumPy computes on JAX: nothing is compiled, distributions are Keras', other threads are left."""

import threading

import keras
import numpy as np
import pytest

from pbd.system import initial_values

ON_JAX = keras.backend.backend() == "jax"
SHAPE = (3, 3, 64, 50)


def values(initializer: keras.initializers.Initializer, dtype: str = "float32") -> np.ndarray:
    return np.asarray(keras.layers.Layer().add_weight(shape=SHAPE, initializer=initializer, dtype=dtype).value)


def from_generator() -> np.ndarray:
    return values(keras.initializers.HeNormal(seed=keras.random.SeedGenerator(3)))


@pytest.mark.parametrize(
    "initializer",
    [
        keras.initializers.HeNormal(seed=3),
        keras.initializers.GlorotUniform(seed=3),
        keras.initializers.RandomNormal(1.0, 0.5, seed=3),
        keras.initializers.TruncatedNormal(1.0, 0.5, seed=3),
        keras.initializers.Zeros(),
        keras.initializers.Ones(),
    ],
    ids=lambda initializer: type(initializer).__name__,
)
def test_the_distribution_is_that_of_keras(initializer: keras.initializers.Initializer) -> None:
    expected = values(initializer)
    with initial_values.on_host():
        drawn, again = values(initializer), values(initializer)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, again)
    is_random = expected.std() > 0
    assert np.array_equal(drawn, expected) == (not ON_JAX or not is_random)
    np.testing.assert_allclose(again.mean(), expected.mean(), atol=0.02 * expected.std())
    np.testing.assert_allclose(again.std(), expected.std(), rtol=0.02)
    np.testing.assert_allclose([again.min(), again.max()], [expected.min(), expected.max()], atol=expected.std())
    np.testing.assert_array_equal(values(initializer), expected, "Keras' own values again after the block")


@pytest.mark.skipif(not ON_JAX, reason="other backends compute initial values themselves")
def test_other_threads_and_generators_of_seeds_are_left_to_keras() -> None:
    ours, seen = keras.initializers.HeNormal(seed=3), []
    by_keras, by_keras_generator = values(ours), from_generator()
    with initial_values.on_host(), initial_values.on_host():
        thread = threading.Thread(target=lambda: seen.append(values(ours)))
        thread.start()
        thread.join()
        generated = from_generator()
        half = values(keras.initializers.HeNormal(seed=3), "bfloat16")
    np.testing.assert_array_equal(seen[0], by_keras)
    np.testing.assert_array_equal(generated, by_keras_generator)
    assert half.dtype.name == "bfloat16"


class AddsConstant(keras.layers.Layer):
    """Adds what it draws in `build`, which is no weight."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.drawn = keras.random.normal(input_shape[1:], seed=3)
        self.initialised = keras.initializers.HeNormal(seed=3)(input_shape[1:])

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return inputs + self.drawn + self.initialised


@pytest.mark.skipif(not ON_JAX, reason="other backends compute initial values themselves")
def test_what_is_no_weight_is_drawn_by_keras() -> None:
    images = np.zeros((1, 4, 4, 3), np.float32)
    expected = AddsConstant()(images)
    with initial_values.on_host():
        np.testing.assert_array_equal(AddsConstant()(images), expected)


@pytest.mark.skipif(not ON_JAX, reason="other backends do not compile initial values")
def test_a_network_is_built_without_compiling() -> None:
    import jax

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    with initial_values.on_host():
        inputs = keras.Input((7, 9, 3))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(11, 3)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(13)(keras.layers.Flatten()(x)))
    assert compiled == []
    assert model.count_params() > 0
