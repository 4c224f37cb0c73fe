"""Archives of arrays: which are loaded, and what is refused by name."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.data import load
from pbd.errors import BadInputError
from tests.helpers.numbered_images import NO_Y, arrays, config, one_line, own_validation

pytestmark = pytest.mark.usefixtures("few_threads")


def test_bad_archives_are_named(tmp_path: Path, npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "Add y_test, or give --no-labels.", dataset=npz(y_test=None))
    one_line(BadInputError, "Add y_train, or give --no-labels.", dataset=npz(y_train=None))
    one_line(BadInputError, "Add y_test, y_train, or give --no-labels.", dataset=npz(**NO_Y, **own_validation()))
    one_line(BadInputError, "Add y_val", dataset=npz(x_val=arrays()["x_test"]))
    one_line(BadInputError, "Add x_val.", dataset=npz(y_val=arrays()["y_test"]))
    one_line(BadInputError, "Add x_train.", dataset=npz(x_train=None))
    one_line(BadInputError, "Received: no arrays. Add x_train.", dataset=npz(x_train=None, x_test=None, **NO_Y))
    one_line(BadInputError, "pickled", dataset=npz(x_train=np.array([{}, []], object)))
    whole = npz().read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], pickle.dumps([1])):
        (tmp_path / "bad.npz").write_bytes(content)
        one_line(BadInputError, "bad.npz", dataset=tmp_path / "bad.npz")
    with open(tmp_path / "bad.npz", "wb") as file:
        np.save(file, np.zeros(3))
    one_line(BadInputError, "bad.npz", dataset=tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"y_train": np.arange(60) % 3 + 0.5}, "integers"),
        ({"y_train": np.arange(60) % 3 - 1}, "-1"),
        ({"y_train": np.eye(3, dtype=int)[np.arange(60) % 3]}, "argmax"),
        ({"y_train": np.arange(59) % 3}, "59 labels"),
        ({"y_test": np.arange(12)}, "11"),
        ({"x_train": np.full((60, 6, 6, 3), np.nan, np.float32)}, "NaN"),
        ({"x_train": np.full((60, 6, 6, 3), 300)}, "0..255"),
        ({"x_train": np.zeros((60, 6, 6, 3), complex)}, "complex"),
        ({"x_train": np.zeros((60, 36), np.uint8)}, "(60, 36)"),
        ({"x_train": np.zeros((60, 3, 8, 8), np.uint8)}, "transpose"),
        ({"x_train": np.zeros((0, 6, 6, 3), np.uint8), "y_train": np.zeros(0, int)}, "(0, 6, 6, 3)"),
        ({"x_test": np.zeros((12, 5, 5, 3), np.uint8)}, "one shape"),
    ],
)
def test_bad_arrays_are_named(npz: Callable[..., Path], changes: dict[str, np.ndarray], fragment: str) -> None:
    one_line(BadInputError, fragment, dataset=npz(**changes))


def test_fewer_images_than_a_batch_are_refused(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "54", "100", "--batch-size", dataset=npz(), batch_size=100)


def test_grayscale_and_float_archives_load(npz: Callable[..., Path]) -> None:
    grey = {name: (a[..., 0] * 1.0 if name[0] == "x" else a) for name, a in arrays().items()}
    data = load(config(npz(**grey)), 0)
    assert data.image_shape == (6, 6, 1)
    assert data.train.images.array.dtype == np.float32
