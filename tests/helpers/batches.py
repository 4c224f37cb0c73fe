"""What the batches of a dataset hold: their arrays, the numbers of `numbered_images`, and their labels."""

from typing import Any

import numpy as np

from pbd.data import Dataset

Batches = list[tuple[np.ndarray, np.ndarray]]
SPLITS = ("train", "validation", "test")


def taken(batches: Any) -> Batches:
    """Return all batches as numpy arrays."""
    return [(np.asarray(x), np.asarray(y)) for x, y in batches]


def ids(batches: Any) -> np.ndarray:
    """Return the numbers in the first pixels."""
    return np.concatenate([x[:, 0, 0, 0] for x, _ in taken(batches)]).astype(int)


def every_id(data: Dataset) -> np.ndarray:
    """Return the numbers in the first pixels of all images of all splits."""
    return np.concatenate([ids(data.batches(name)) for name in SPLITS])


def labels_of(data: Dataset) -> dict[str, np.ndarray]:
    """Return the labels that the batches of each split have."""
    return {name: np.concatenate([y for _, y in taken(data.batches(name))]) for name in SPLITS}


def assert_unlabelled(data: Dataset) -> None:
    """Check that nothing says a class: every label of every batch is -1, as an int32."""
    assert not data.labelled
    assert data.num_classes is None
    batches = [*taken(data.training_batches(0, 1)), *(batch for name in SPLITS for batch in taken(data.batches(name)))]
    assert {y.dtype for _, y in batches} == {np.dtype(np.int32)}
    assert {label for _, y in batches for label in y} == {-1}
    assert all(len(x) == len(y) for x, y in batches)


def same(left: Batches, right: Batches) -> bool:
    """Return whether there are batches, and all are equal."""
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in pairs)
