"""Small networks for the tests of deployment: every kind of head, layers with constants, and images for them."""

from typing import Any

import keras
import numpy as np

import pbd

SIDE = 8
SHAPE = (SIDE, SIDE, 3)


def classifier(head: str = "logits", classes: int = 4, seed: int = 1) -> keras.Model:
    """Two convolutions, of which the second is worth replacing, behind a normalisation that has constants."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input(SHAPE)
    x = layers.Normalization(mean=(120.0, 110.0, 100.0), variance=(60.0, 50.0, 40.0))(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="wide")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(classes, name="classes")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, _with_head(x, head))
    _draw_statistics(model)
    return model


def _with_head(x: Any, head: str) -> Any:
    if head == "logits":
        return x
    return keras.layers.Softmax()(x) if head == "softmax layer" else keras.layers.Activation(head)(x)


def _draw_statistics(model: keras.Model) -> None:
    """Draw the statistics of batch normalisations: those of a new layer would not be noticed if they were lost."""
    draws = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([draws.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])


def images(count: int, seed: int = 0) -> np.ndarray:
    """Return random images, (count, SIDE, SIDE, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def data(model: keras.Model, labels: bool = True) -> pbd.Data:
    """Return data whose labels are what the model predicts, so that its accuracy is 1."""
    splits = {}
    for seed, (role, count) in enumerate({"train": 96, "validation": 64, "test": 48}.items()):
        pixels = images(count, seed)
        outputs = np.asarray(model(pixels.astype("float32"), training=False))
        classes = outputs.argmax(-1) if outputs.shape[-1] > 1 else (outputs[:, 0] > 0.5).astype(int)
        splits[role] = (pixels, classes) if labels else pixels
    return pbd.Data(**splits, batch_size=16, labels=labels)
