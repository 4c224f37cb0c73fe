"""Images of three colours, and a small residual network that learns them in a few steps."""

from typing import Any

import keras
import numpy as np

from pbd.data import Dataset, IndexedSplit
from pbd.data.images import ArrayImages

layers = keras.layers
SHAPE = (8, 8, 3)
CLASSES = 3
_trained: dict[tuple[str, int], list[np.ndarray]] = {}
"""The weights of trained networks, by the images and the size of their batches."""


def make_dataset(labelled: bool = True) -> Dataset:
    """Return 96 images to train on, 48 to validate with and 48 to test with; without labels, the same images."""
    generator = np.random.default_rng(0)

    def split(count: int) -> IndexedSplit:
        labels = np.arange(count, dtype="int32") % CLASSES
        pixels = generator.normal(size=(count, *SHAPE)) + 2.0 * np.eye(CLASSES)[labels][:, None, None, :]
        known = labels if labelled else np.full(count, -1, "int32")
        return IndexedSplit.whole(ArrayImages(pixels.astype("float32"), SHAPE), known)

    splits = split(96), split(48), split(48)
    classes = CLASSES if labelled else None
    return Dataset("colours", *splits, classes, SHAPE, 16, "none", "none", seed=0, labelled=labelled)


def some_images(count: int = 6) -> np.ndarray:
    """Return random images, (count, *SHAPE) float32."""
    return np.random.default_rng(3).normal(1.0, 2.0, (count, *SHAPE)).astype("float32")


def batches(count: int = 3) -> list[np.ndarray]:
    """Return batches of ten random images, each (10, *SHAPE) float32."""
    return list(np.random.default_rng(3).normal(1.0, 2.0, (count, 10, *SHAPE)).astype("float32"))


def make_teacher() -> keras.Model:
    """Return the network with random weights; it ends in logits."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, padding="same", name="stem", activation="relu")(inputs)
    x = layers.BatchNormalization(momentum=0.9, name="norm")(layers.Conv2D(8, 3, padding="same", name="a")(x))
    y = layers.Conv2D(8, 3, padding="same", name="b", activation="relu")(layers.ReLU()(x))
    x = layers.Conv2D(12, 1, name="point")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x), name="teacher")


def trained_teacher(dataset: Dataset) -> keras.Model:
    """Return the network after a few epochs on the labels: nearly always right. Each process trains it once."""
    from pbd.learning.loop import fit_on_labels

    model, key = make_teacher(), (dataset.digest(), dataset.batch_size)
    if key in _trained:
        model.set_weights(_trained[key])
    else:
        fit_on_labels(model, dataset, 4, 0.01, ignore, "teacher")
        _trained[key] = model.get_weights()
    return model


def damage(model: keras.Model, scale: float) -> None:
    """Add noise to every kernel, as large as this share of its deviation."""
    generator = np.random.default_rng(9)
    for layer in model.layers:
        for weight in layer.trainable_weights:
            if "kernel" in weight.name:
                value = keras.ops.convert_to_numpy(weight)
                weight.assign(value + scale * value.std() * generator.normal(size=value.shape))


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


def snapshot(model: keras.Model) -> dict[str, list[np.ndarray]]:
    """Return a copy of every layer's weights."""
    return {layer.name: [weight.copy() for weight in layer.get_weights()] for layer in model.layers if layer.weights}


def moved_layers(before: dict[str, list[np.ndarray]], model: keras.Model) -> set[str]:
    """Return the layers with a weight that is not what it was, to the bit."""
    after = snapshot(model)
    return {n for n in before if any(not np.array_equal(x, y) for x, y in zip(before[n], after[n], strict=True))}


def ignore(_: Any) -> None:
    """Take a progress event and do nothing."""
