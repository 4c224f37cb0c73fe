"""Runs that must be refused: a small classifier, images for it, and what holds of every refusal."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.errors import PbdError

SLOWEST_S = 120
MOST_BYTES = 400e6
Files = dict[str, Path]
"""A model in both formats and images for it: the fixture `good`."""


def classifier(*layers: keras.Layer) -> keras.Model:
    """A classifier of 12x12 RGB images into four classes, with these layers in it."""
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    """Images and labels that suit the model, but for what is changed."""
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (96, 12, 12, 3), dtype=np.uint8), np.arange(96) % 4
    found = {"x_train": images, "y_train": labels, "x_test": images[:32], "y_test": labels[:32]} | changed
    return {name: value for name, value in found.items() if value is not None}


IMAGES = arrays()["x_train"]


def refusal(run_dir: Path, **settings: Any) -> PbdError:
    """Return what a run of these settings is refused with; check how."""
    began, before = time.monotonic(), resident()
    with pytest.raises(PbdError) as caught:
        pbd.distill(run_dir=str(run_dir), epochs=1, fine_tune_epochs=1, batch_size=16, isolate=False, **settings)
    assert time.monotonic() - began < SLOWEST_S
    assert resident() - before < MOST_BYTES
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not run_dir.exists()
    return caught.value


def resident() -> int:
    """Return the most bytes of memory that this process has had."""
    from pbd.system import memory

    return memory.peak_memory()


class Twice(keras.layers.Layer):
    """A layer of the user's own, of which Keras was told nothing."""

    def call(self, x: Any) -> Any:
        return 2 * x
