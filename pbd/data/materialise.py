"""Splits given as Python objects, read into arrays: pairs of arrays, `keras.utils.PyDataset`, `tf.data.Dataset`."""

import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from pbd.errors import BadInputError
from pbd.system import memory

Arrays = tuple[np.ndarray, np.ndarray | None]
"""Images and labels; the labels are `None` if there are none."""
MOST_CHANNELS = 4
"""Of an image, in what tells a single image, (height, width, channels), from a batch of grey images."""
READ_AT_ONCE = 256
"""Images in a batch of a `tf.data.Dataset` that is not batched."""


def as_arrays(role: str, split: Any) -> Arrays:
    """Return a split as arrays of images and labels.

    Args:
        role: train, validation or test, for messages.
        split: see `pbd.Data`.

    Raises:
        BadInputError: the split is of another type, is endless, has no images, or does not fit in memory.
    """
    tensorflow, keras = sys.modules.get("tensorflow"), sys.modules.get("keras")  # loaded if `split` is one of theirs
    if tensorflow is not None and isinstance(split, tensorflow.data.Dataset):
        return _from_tf_data(role, split)
    if keras is not None and isinstance(split, keras.utils.PyDataset):
        return _from_py_dataset(role, split)
    if isinstance(split, str | os.PathLike):
        raise BadInputError(f"{role} must be arrays. Received: {os.fspath(split)!r}. Use pbd.Data.load for a path.")
    if not isinstance(split, tuple):
        return _array(role, "images", split), None
    images, labels = _pair(role, split)
    return _array(role, "images", images), None if labels is None else _array(role, "labels", labels)


def _array(role: str, name: str, values: Any) -> np.ndarray:
    """Return numbers that may be a list, a tensor or a NumPy array as an array."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise BadInputError(
            f"the {name} of {role} must form one array. Received: a {type(values).__name__} with several shapes. "
            "Give a tuple (images, labels), each of one shape."
        ) from error
    if array.dtype == object and not (name == "labels" and _is_text(array)):  # `array_split` refuses labels, if used
        raise BadInputError(
            f"{role} must be arrays (images, labels), images, a keras.utils.PyDataset or a tf.data.Dataset. "
            f"Received: {type(values).__name__} as {name}. Use np.stack on images of one shape."
        )
    return array


def _is_text(array: np.ndarray) -> bool:
    return all(isinstance(value, str | bytes) for value in array.flat)


def _pair(role: str, element: Any) -> tuple[Any, Any]:
    """Return the images and labels of an element: `(images, labels)`, `(images, labels, weights)` or images alone."""
    parts = element if isinstance(element, tuple | list) else (element,)
    if not 1 <= len(parts) <= 3:
        raise BadInputError(
            f"{role} must be images or a pair (images, labels). Received: {len(parts)} parts. Map it to a pair."
        )
    if isinstance(parts[0], dict):
        raise BadInputError(
            f"{role} must be images or pairs (images, labels). Received: a dict. Map it to (x['image'], x['label'])."
        )
    return parts[0], parts[1] if len(parts) > 1 else None


def _from_py_dataset(role: str, dataset: Any) -> Arrays:
    try:
        count = dataset.num_batches
    except NotImplementedError:  # without `__len__`
        count = None
    if count is None:
        raise BadInputError(f"{role} must have a number of batches. Received: a PyDataset without __len__. Add it.")
    return _joined(role, (dataset[index] for index in range(count)), count)


def _from_tf_data(role: str, dataset: Any) -> Arrays:
    cardinality = int(dataset.cardinality())
    if cardinality == sys.modules["tensorflow"].data.INFINITE_CARDINALITY:
        raise BadInputError(f"{role} must be finite. Received: an endless tf.data.Dataset. Remove .repeat().")
    images, labels = _pair(role, dataset.element_spec)
    if any(isinstance(each, tuple | list | dict) for each in (images, labels)):
        raise BadInputError(
            f"{role} must be images or pairs (images, labels). Received: several images or labels in one. Map it to "
            "a pair."
        )
    if not _is_batched(role, images, labels):
        dataset = dataset.batch(READ_AT_ONCE)
        cardinality = int(dataset.cardinality())
    return _joined(role, dataset.as_numpy_iterator(), cardinality if cardinality > 0 else None)


def _is_batched(role: str, images: Any, labels: Any) -> bool:
    """Return whether elements are batches, from the specifications of their images and labels.

    Raises:
        BadInputError: the images have no known number of dimensions, single images have several sizes, or images may be
            single ones or batches.
    """
    shape = images.shape
    if shape.rank is None:
        raise BadInputError(f"the shape of {role} images must be known. Received: unknown. Use tf.ensure_shape.")
    if shape.rank == 4 or (shape.rank == 3 and _is_grey_batch(role, shape, labels)):
        return True
    if None in shape[:2]:
        raise BadInputError(f"the images of {role} must have one size. Received: {shape}. Use tf.image.resize.")
    return False


def _is_grey_batch(role: str, shape: Any, labels: Any) -> bool:
    """Return whether images of three dimensions are batches of grey images.

    Raises:
        BadInputError: they may be batches or single images.
    """
    if shape[2] is not None and shape[2] <= MOST_CHANNELS:
        return False
    if labels is not None:
        return labels.shape.rank != 0 and labels.shape[0] == shape[0]
    if None not in shape:
        raise BadInputError(
            f"{role} must be single images or batches. Received: {shape} without labels, which may be either. "
            "Map batches of grey images to images[..., tf.newaxis], or use .batch(32) on single images."
        )
    return shape[0] is None and None not in shape[1:]


def _joined(role: str, batches: Iterable[Any], count: int | None) -> Arrays:
    """Return all batches, read once and in order, as arrays.

    Args:
        role: the role of the split.
        batches: images, or images and labels.
        count: the number of batches, if it is known: whether they fit in memory is then decided after the first.
    """
    images, labels, size = list[np.ndarray](), list[np.ndarray](), 0
    for batch in batches:
        batch_images, batch_labels = _pair(role, batch)
        images.append(compact(_array(role, "images", batch_images)))
        size += images[-1].nbytes
        _check_size(role, images[0].nbytes * count if count and len(images) == 1 else size)
        if batch_labels is not None:
            labels.append(_array(role, "labels", batch_labels))
    if not images:
        raise BadInputError(f"{role} must have images. Received: none. Give another split.")
    return _concatenated(role, images), _concatenated(role, labels) if labels else None


def compact(images: np.ndarray) -> np.ndarray:
    """Return images as uint8 if that changes no value, as they are otherwise."""
    if images.dtype == np.uint8 or images.dtype.kind not in "iuf":
        return images
    with np.errstate(invalid="ignore"):  # NaN has no uint8, and differs from whatever it becomes
        smaller = images.astype(np.uint8)
    return smaller if np.array_equal(smaller, images) else images


def _check_size(role: str, size: int) -> None:
    """Refuse images of `size` bytes that do not fit in memory twice, as a list of batches and as one array."""
    free = memory.free_host_memory()
    if 2 * size > free:
        raise BadInputError(
            f"{role} must fit in memory, into which it is read. Received: {size / 1e9:.1f} GB of images, with "
            f"{free / 2e9:.1f} GB for them. Save the images as files and use pbd.Data.load, or give fewer."
        )


def _concatenated(role: str, batches: list[np.ndarray]) -> np.ndarray:
    try:
        return np.concatenate(batches)
    except ValueError as error:
        shapes = ", ".join(sorted({str(batch.shape[1:]) for batch in batches})[:3])
        raise BadInputError(f"all batches of {role} must have one shape. Received: {shapes}. Resize them.") from error
