"""Small hand-made networks, what they compute, and which of their layers can be replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.records import BlockTask
from tests.helpers.swapping import swap_blocks

layers = keras.layers
SHAPE = (12, 12, 8)
BLOCK = "two_layer"


def conv(name: str, filters: int = 16, kernel: Any = 3, padding: str = "same", **settings: Any) -> keras.Layer:
    """Return a convolution with random biases."""
    return layers.Conv2D(filters, kernel, padding=padding, name=name, bias_initializer="normal", **settings)


def classifier(body: Callable[[Any], Any], shape: tuple[int, int, int] = SHAPE) -> keras.Model:
    """Return a model that classifies what `body` makes of its input; every weight of it is random."""
    inputs = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(body(inputs))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    generator = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def images(shape: tuple[int, int, int] = SHAPE, count: int = 3) -> np.ndarray:
    """Return random images, (count, *shape) float32."""
    return np.random.default_rng(1).normal(size=(count, *shape)).astype("float32")


def predict(model: keras.Model, batch: np.ndarray) -> np.ndarray:
    """Return the outputs for a batch in inference mode."""
    return keras.ops.convert_to_numpy(model(batch, training=False))


def difference(one: keras.Model, other: keras.Model, batch: np.ndarray | None = None) -> float:
    """Return the largest difference of the outputs; those of the first model must differ from image to image."""
    batch = images() if batch is None else batch
    expected = predict(one, batch)
    assert np.isfinite(expected).all()
    assert np.ptp(expected, axis=0).min() > 0
    return float(np.abs(expected - predict(other, batch)).max())


def reasons(model: keras.Model, **settings: Any) -> dict[str, str | None]:
    """Return why each layer is skipped, or None, by name."""
    return {task.layer.name: task.skip_reason for task in enumerate_tasks(model, blocks.get(BLOCK), **settings)}


def swap_all(flat: keras.Model, tmp_path: Path) -> tuple[BlockTask, ...]:
    """Swap every layer that can be, check what must hold of any such network, and return the tasks."""
    tasks = enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True)
    chosen = [task for task in tasks if task.skip_reason is None]
    student = swap_blocks(flat, chosen, seed=1)
    replaced = {task.layer.name for task in chosen}
    for layer in flat.layers:
        if layer.name not in replaced:
            twin = student.get_layer(layer.name)
            assert twin is not layer
            assert twin.output.shape == layer.output.shape
            for ours, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    student.save(tmp_path / "student.keras")
    assert difference(student, keras.models.load_model(tmp_path / "student.keras")) == 0.0
    return tasks


def residual(x: Any) -> Any:
    """A body of two residual sums, the second with a shortcut of stride 2."""
    y = layers.BatchNormalization()(conv("a1", 8)(x))
    y = conv("a2", 8)(layers.ReLU()(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = conv("b1", strides=2)(x)
    return layers.Add()([conv("short", kernel=1, strides=2)(x), y])
