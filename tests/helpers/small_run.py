"""A small teacher, settings with which a whole run of it takes seconds, and a small built-in network."""

from typing import Any

SMALL = {
    "block": "decoupled_r2",
    "train_limit": 256,
    "batch_size": 32,
    "epochs": 1,
    "fine_tune_epochs": 1,
    "executor": "serial",
    "isolate": False,
}
"""For `pbd.distill`: on the digits, one epoch of each kind, in this process."""


def small_teacher() -> "object":
    """Return a classifier of the digits with random weights; it has a dropout, and ends in softmax."""
    import keras

    keras.utils.set_random_seed(4)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = keras.layers.Dropout(0.2)(x)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="body")(x)
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="small")


def tiny_digits_network(shape: tuple[int, int, int], classes: int) -> Any:
    """Return what stands in for the built-in network: a hundredth of its multiply-accumulates."""
    import keras

    x = inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for name, filters in (("conv1_1", 16), ("conv3_1", 32)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(x)), name="digits_cnn")
