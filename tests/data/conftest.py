"""What the tests of datasets share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.image_files import ODD_FOLDER
from tests.helpers.numbered_images import arrays


@pytest.fixture(scope="module")
def few_threads() -> None:
    """Compute on one thread, if TensorFlow has no devices yet."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("CPU"):
        tf.config.threading.set_intra_op_parallelism_threads(1)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an archive, the default arrays changed as told, and gives its path."""

    def write(**changes: np.ndarray | None) -> Path:
        (tmp_path / ODD_FOLDER).mkdir(exist_ok=True)
        path = tmp_path / ODD_FOLDER / "bilder 1.npz"
        np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
        return path

    return write
