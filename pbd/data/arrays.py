"""Arrays of images and labels: the rules that they must follow, and the splits that are made of them."""

from dataclasses import dataclass

import numpy as np

from pbd.data.images import ArrayImages, FileImages
from pbd.data.splitting import NO_LABEL
from pbd.errors import BadInputError

LARGEST_PIXEL = float(np.finfo(np.float32).max)
"""Larger values become infinite as float32, the type of images in memory."""


@dataclass(frozen=True)
class RawSplit:
    """A split as the data set stores it: images, and labels, (n,) int32, or `None` without labels."""

    images: ArrayImages | FileImages
    labels: np.ndarray | None

    @property
    def batch_labels(self) -> np.ndarray:
        """The labels of batches, (n,) int32: `NO_LABEL` for every image if there are no labels."""
        return np.full(len(self.images), NO_LABEL, np.int32) if self.labels is None else self.labels


@dataclass(frozen=True)
class RawSplits:
    """The splits of a data set; a split that is `None` is taken from the training images."""

    train: RawSplit
    validation: RawSplit | None = None
    test: RawSplit | None = None

    @property
    def num_classes(self) -> int | None:
        return None if self.train.labels is None else int(self.train.labels.max()) + 1


def array_split(
    name: str, images: np.ndarray, labels: np.ndarray | None, train_labels: np.ndarray | None = None
) -> RawSplit:
    """Return a split of arrays that follow the rules.

    Args:
        name: the name of the split, in messages.
        images: see `checked_images`.
        labels: (n,) or (n, 1), whole numbers from 0, or booleans; `None` without labels.
        train_labels: the training labels, for another split: they contain its largest label.

    Raises:
        BadInputError: the arrays break one of these rules.
    """
    pixels = checked_images(name, np.asarray(images))
    if labels is None:
        return RawSplit(ArrayImages(pixels), None)
    classes = _checked_labels(name, np.asarray(labels), len(pixels))
    if train_labels is not None and classes.max() > np.max(train_labels):
        raise BadInputError(
            f"the labels of {name} must be among the training labels, 0 to {np.max(train_labels)}. "
            f"Received: {classes.max()}. Add training images of this class, or give --no-labels."
        )
    return RawSplit(ArrayImages(pixels), classes)


def checked_images(name: str, images: np.ndarray) -> np.ndarray:
    """Return images as (n, height, width, channels), uint8 or float32.

    Args:
        name: the name of the split, in messages.
        images: (n, height, width) or (n, height, width, channels); uint8, other integers in 0..255, or finite float.

    Raises:
        BadInputError: the images break one of these rules.
    """
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise BadInputError(
            f"{name} must hold images of shape (n, height, width, channels). Received: shape {images.shape}. "
            "Use images.reshape(n, height, width, channels)."
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise BadInputError(
            f"{name} must have its channels last. Received: shape {images.shape}. Use x.transpose(0, 2, 3, 1)."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise BadInputError(f"{name} must be uint8 or float. Received: {images.dtype}. Use images.astype('float32').")
    low, high = images.min(), images.max()
    if images.dtype.kind == "f":
        # The minimum and the maximum are NaN if any pixel is, and no comparison with NaN holds.
        if not (float(low) >= -LARGEST_PIXEL and float(high) <= LARGEST_PIXEL):
            raise BadInputError(f"{name} must hold finite numbers. Received: NaN or infinity. Remove those images.")
        return images.astype(np.float32, copy=False)
    if low < 0 or high > 255:
        raise BadInputError(
            f"{name} must hold integers in 0..255. Received: {low} to {high}. "
            "Scale the images, or use images.astype('float32')."
        )
    return images.astype(np.uint8)


def _checked_labels(name: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    """Return labels as (n,) int32."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise BadInputError(
            f"the labels of {name} must have shape (n,). Received: {labels.shape}. For one-hot, use labels.argmax(1)."
        )
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and np.isfinite(labels).all() and not (labels % 1).any()):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        remedy = "labels.astype('int64')" if labels.dtype.kind == "f" else "np.unique(labels, return_inverse=True)[1]"
        raise BadInputError(f"the labels of {name} must be integers. Received: {labels.dtype}. Use {remedy}.")
    if len(labels) != num_images:
        raise BadInputError(
            f"{name} needs one label per image. Received: {len(labels)} labels, {num_images} images. "
            "Correct the labels, or give --no-labels."
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise BadInputError(
            f"the labels of {name} must count from 0. Received: {labels.min()} to {labels.max()}. "
            "Renumber the classes: np.unique(labels, return_inverse=True)[1]."
        )
    return labels.astype(np.int32)
