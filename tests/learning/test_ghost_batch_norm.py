"""Ghost batch normalisation: correct, independent of how a batch is split, equal to Keras' layer for one part."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd.learning import ghost_batch_norm
from pbd.learning.losses import squared_error
from tests.helpers.gradients import gradients
from tests.helpers.palette import SHAPE
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.jax


def network(axis: int = -1, trainable: bool = True, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(2)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 3, use_bias=False)(inputs)
    normalise = keras.layers.BatchNormalization(axis=axis, momentum=0.8, name="normalise", **options)
    normalise.trainable = trainable
    x = keras.layers.Dropout(0.0)(keras.layers.ReLU()(normalise(x)))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    draws = np.random.default_rng(5)
    normalise.set_weights([draws.uniform(0.5, 2.0, w.shape).astype("float32") for w in normalise.get_weights()])
    return model


def images(count: int = 48) -> np.ndarray:
    return np.random.default_rng(3).normal(1.0, 2.0, (count, *SHAPE)).astype("float32")


@pytest.mark.parametrize(("batch", "size"), [(64, 32), (100, 50), (99, 33), (60, 60), (31, 31), (8, 8), (1, 1)])
def test_the_size_of_the_parts(batch: int, size: int) -> None:
    assert ghost_batch_norm.ghost_batch_size(batch) == size


def test_the_split_unit_depends_on_the_layers() -> None:
    assert ghost_batch_norm.split_unit(network(), 64) == 32
    assert ghost_batch_norm.split_unit(network(trainable=False), 64) == 1
    assert ghost_batch_norm.split_unit(network(axis=1), 64) == 64
    inputs = keras.Input(SHAPE)
    plain = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    assert ghost_batch_norm.split_unit(plain, 64) == 1
    dropping = keras.Model(inputs, keras.layers.Dropout(0.1)(plain(inputs)))
    assert ghost_batch_norm.split_unit(dropping, 64) == 64, "each worker would draw its own dropout mask"


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_one_part_equals_keras(options: dict[str, Any]) -> None:
    ours, theirs, x = network(**options), network(**options), images()
    np.testing.assert_allclose(ghost_batch_norm.train(ours, x, len(x)), theirs(x, training=True), rtol=1e-4, atol=1e-5)
    for own, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_the_gradients_are_those_of_the_definition(options: dict[str, Any]) -> None:
    layer = network(**options).get_layer("normalise")
    draws = np.random.default_rng(8)
    x, weights = (draws.normal(5.0, 0.5, (24, 4, 4, 6)).astype("float32") for _ in range(2))

    def ours(x: Any) -> Any:
        return ghost_batch_norm.normalise(layer, x, 8)

    def defined(x: Any) -> Any:
        parts = keras.ops.split(x, 3)
        return keras.ops.concatenate([layer(part, training=True) for part in parts])

    def of(apply: Callable[[Any], Any]) -> list[np.ndarray]:
        return gradients(lambda x: keras.ops.sum(apply(x) * weights), [x], layer.trainable_variables)[1]

    expected, actual = of(defined), of(ours)
    assert len(actual) == len(layer.trainable_variables) + 1
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def test_channels_that_hardly_vary_around_a_large_mean_are_normalised_too() -> None:
    layer = network(scale=False, center=False).get_layer("normalise")
    x = (1000.0 + np.random.default_rng(4).normal(size=(32, 16, 16, 6))).astype("float32")
    found = np.asarray(ghost_batch_norm.normalise(layer, x, 32), np.float64)
    np.testing.assert_allclose(found.std(axis=(0, 1, 2)), 1.0, atol=2e-3)
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0.0, atol=3e-3)


def test_each_part_is_normalised_as_a_batch_of_its_own() -> None:
    model, x = network(), images(32)
    before = model.get_layer("normalise").get_weights()
    outputs = np.asarray(ghost_batch_norm.train(model, x, 16))
    after, moved = model.get_layer("normalise").get_weights(), []
    for part in (slice(16), slice(16, 32)):
        alone = network()
        np.testing.assert_allclose(outputs[part], alone(x[part], training=True), rtol=1e-4, atol=1e-5)
        moved.append(alone.get_layer("normalise").get_weights()[2:])
    np.testing.assert_allclose(after[2:], np.mean(moved, axis=0), rtol=1e-5)
    assert not np.allclose(after[2], before[2])
    assert not np.allclose(moved[0][0], moved[1][0]), "otherwise the parts cannot be distinguished"


def test_several_workers_share_their_averages() -> None:
    x = images(48)
    whole = network()
    ghost_batch_norm.train(whole, x, 16)
    models = [network(), network()]

    def work(collective: Any) -> list[np.ndarray]:
        model, own = models[collective.index], x[:16] if collective.index == 0 else x[16:]
        ghost_batch_norm.train(model, own, 16)
        shared = ghost_batch_norm.ShareStatistics(ghost_batch_norm.normalisations(model), collective, len(own) / len(x))
        shared.on_epoch_end(0)
        return model.get_weights()

    for weights in run_threads(2, work):
        for own, other in zip(weights, whole.get_weights(), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)


def test_custom_gradients_close_over_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """In JAX, a custom gradient that closes over a traced value fails."""
    functions, custom_gradient = [], keras.ops.custom_gradient
    monkeypatch.setattr(keras.ops, "custom_gradient", lambda f: functions.append(f) or custom_gradient(f))
    ghost_batch_norm.normalise(network().get_layer("normalise"), np.ones((8, 4, 4, 6), "float32"), 4)
    squared_error(images(4), images(4))
    assert len(functions) == 2
    closures = [cell.cell_contents for function in functions for cell in function.__closure__]
    assert not any(keras.ops.is_tensor(value) or isinstance(value, np.ndarray) for value in closures)
