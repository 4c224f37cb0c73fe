"""Small arrays of images whose first pixel is their number, loaded or refused as datasets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import load
from pbd.errors import PbdError

NO_Y = {"y_train": None, "y_test": None}
"""Changes of `arrays` that leave the labels out."""


def config(dataset: str | Path = "digits", **settings: Any) -> DataConfig:
    """Return settings with small batches."""
    return DataConfig(dataset=str(dataset), **{"batch_size": 8, **settings})


def arrays(
    train: int = 60, test: int = 12, shape: tuple[int, ...] = (6, 6, 3), classes: int = 3
) -> dict[str, np.ndarray]:
    """Return arrays in which the first pixel of every image is its own number."""
    numbers = np.arange(train + test)
    images = np.random.default_rng(1).integers(0, 256, (train + test, *shape), dtype=np.uint8)
    images.reshape(train + test, -1)[:, 0] = numbers
    return {
        "x_train": images[:train],
        "y_train": numbers[:train] % classes,
        "x_test": images[train:],
        "y_test": numbers[train:] % classes,
    }


def own_validation() -> dict[str, np.ndarray]:
    """Return arrays for a validation split of its own, of 20 images."""
    own = arrays(train=20, test=0)
    return {"x_val": own["x_train"] // 2, "y_val": own["y_train"][:, np.newaxis]}


def one_line(kind: type[PbdError], *fragments: str, image_shape: Any = None, **settings: Any) -> None:
    """Check that loading for a training fails with this error, in one line that has these fragments."""
    with pytest.raises(PbdError) as caught:
        load(config(**settings), 0, image_shape).check_trainable()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
