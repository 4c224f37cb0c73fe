"""Blocks in place of residual blocks: one convolution at the least squared error, or nothing."""

from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import initialisation
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import graph
from pbd.networks.residuals import find_residuals

L = keras.layers
SHAPE = (7, 7, 4)


def teacher(filters: int = 6, strides: int = 1, operator: bool = False) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    y = L.Conv2D(5, 3, strides, padding="same", activation="relu", bias_initializer="normal", name="a")(inputs)
    y = L.Conv2D(filters, 3, padding="same", bias_initializer="normal", name="b")(y)
    shortcut = inputs if filters == SHAPE[-1] else L.Conv2D(filters, 1, strides, name="shortcut")(inputs)
    x = y + shortcut if operator else L.Add(name="sum")([y, shortcut])
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def initialised(model: keras.Model, images: np.ndarray, block_init: str = "fitted") -> keras.Model:
    """Return a block `merge` for the residual block."""
    design = blocks.get("merge")
    (task,) = (task for task in enumerate_tasks(model, design, include_unprofitable=True))
    built = {task.key: blocks.build_block(design, task.layer, 0)}
    prefix = graph.truncate(model, [task.layer.name])
    batches = iter(np.split(images, 2))
    initialisation.initialise(built, [task], {"merge": design}, model, prefix, batches, block_init, seed=0)
    return built[task.key]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Images that are gathered at all positions."""
    monkeypatch.setattr(initialisation, "PATCHES_PER_VALUE", 10**6)
    return np.random.default_rng(0).normal(0.5, 1.0, (32, *SHAPE)).astype("float32")


@pytest.mark.parametrize(
    ("filters", "strides", "operator"),
    [(6, 1, False), (6, 1, True), (SHAPE[-1], 1, False), (6, 2, False), (6, 3, False)],
    ids=["projection", "+", "identity", "half", "third"],
)
def test_a_merged_block_has_the_least_squared_error(
    filters: int, strides: int, operator: bool, images: np.ndarray
) -> None:
    model = teacher(filters, strides, operator)
    block = initialised(model, images)
    (name,) = find_residuals(model)
    inputs, target = map(np.asarray, graph.truncate(model, [name]).predict_on_batch(images)[name])

    def error(weights: list[np.ndarray]) -> float:
        block.set_weights(weights)
        return float(np.mean((np.asarray(block(inputs), np.float64) - target) ** 2))

    fitted = block.get_weights()
    least, generator = error(fitted), np.random.default_rng(1)
    assert least < 0.5 * np.var(target)
    for _ in range(20):
        steps = [generator.normal(0.0, 0.01, weight.shape).astype("float32") for weight in fitted]
        assert error([w + s for w, s in zip(fitted, steps, strict=True)]) > least
        assert error([w - s for w, s in zip(fitted, steps, strict=True)]) > least


def test_a_linear_block_is_merged_without_error(images: np.ndarray) -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    y = L.Conv2D(5, 1, name="a")(inputs)
    y = L.Conv2D(SHAPE[-1], 3, padding="same", name="b")(y)
    model = keras.Model(inputs, L.Add(name="sum")([y, inputs]))
    block = initialised(model, images)
    output, target = np.asarray(block(images)), np.asarray(model(images))
    assert np.mean((output - target) ** 2) < 1e-3 * np.var(target), "all that is left is the ridge's"


def test_a_merged_block_with_noise_is_random(images: np.ndarray) -> None:
    design: Any = blocks.get("merge")
    model = teacher()
    (task,) = enumerate_tasks(model, design, include_unprofitable=True)
    random = blocks.build_block(design, task.layer, 0).get_weights()
    noise, kernel, fitted = (initialised(model, images, init).get_weights() for init in ("noise", "kernel", "fitted"))
    for expected, found in ((random, noise), (fitted, kernel)):  # a residual block has no kernel to begin with
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
