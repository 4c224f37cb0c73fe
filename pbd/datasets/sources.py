"""Datasets held in arrays: scikit-learn's digits, keras.datasets and .npz archives."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pbd.datasets.images import ArrayImages, FileImages
from pbd.errors import BadInputError, MissingInputError

KERAS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class Part:
    """Images and their labels, (n,) int32, that the data itself keeps together."""

    images: ArrayImages | FileImages
    labels: np.ndarray


@dataclass(frozen=True)
class Parts:
    """What a dataset brings; `None` where it leaves the split to us."""

    train: Part
    validation: Part | None = None
    test: Part | None = None

    @property
    def num_classes(self) -> int:
        return int(self.train.labels.max()) + 1


def load_digits() -> Parts:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 scaled up to 32x32x1, uint8; nothing is downloaded."""
    import tensorflow as tf
    from sklearn import datasets

    digits = datasets.load_digits()
    with tf.device("CPU"):
        scaled = tf.image.resize(digits.images[..., np.newaxis] * (255.0 / 16.0), (32, 32), "bilinear")
    images = np.clip(np.rint(scaled.numpy()), 0, 255).astype(np.uint8)
    return Parts(array_part("digits", images, digits.target))


def load_keras(name: str) -> Parts:
    """Return one of `keras.datasets`, from its cache or downloaded into it.

    Raises:
        MissingInputError: it is not in the cache and cannot be downloaded.
    """
    import keras

    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise MissingInputError(
            f"{name} must be in Keras' cache or be downloadable. Received: {_one_line(error)}. "
            "Put it under $KERAS_HOME/datasets (default ~/.keras), or give the images as an .npz file."
        ) from error
    return Parts(array_part(f"{name} train", *train), test=array_part(f"{name} test", *test, train_labels=train[1]))


def load_npz(path: Path) -> Parts:
    """Return the images of an .npz archive: x_train, y_train, x_test, y_test and, optionally, x_val, y_val.

    Raises:
        BadInputError: it is damaged, holds pickled objects, lacks arrays, or holds unusable ones.
    """
    arrays = _read_npz(path)
    y_train = arrays["y_train"]
    train = array_part(f"{path.name} x_train", arrays["x_train"], y_train)
    test = array_part(f"{path.name} x_test", arrays["x_test"], arrays["y_test"], train_labels=y_train)
    validation = None
    if "x_val" in arrays:
        validation = array_part(f"{path.name} x_val", arrays["x_val"], arrays["y_val"], train_labels=y_train)
    return Parts(train, validation, test)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays that are ours in an .npz archive, by name."""
    needed = {"x_train", "y_train", "x_test", "y_test"}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            if names & {"x_val", "y_val"}:
                needed |= {"x_val", "y_val"}
            missing = sorted(needed - names)
            arrays = {} if missing else {name: archive[name] for name in sorted(needed)}
    except PermissionError as error:
        raise MissingInputError(f"an .npz dataset must be readable. Received: {_one_line(error)}.") from error
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower() and zipfile.is_zipfile(path):
            remedy = "Save plain number arrays, not objects."
            raise BadInputError(f"an .npz must hold no pickled objects. Received: {str(path)!r}. {remedy}") from error
        remedy = "It may be damaged, or no .npz: save it again with numpy.savez."
        raise BadInputError(f"an .npz must be an archive of arrays. Received: {str(path)!r}. {remedy}") from error
    if missing:
        raise BadInputError(
            f"an .npz dataset needs {', '.join(sorted(needed))}. Received: {', '.join(sorted(names)) or 'no arrays'}. "
            f"Add {', '.join(missing)}."
        )
    return arrays


def array_part(what: str, images: np.ndarray, labels: np.ndarray, train_labels: np.ndarray | None = None) -> Part:
    """Return arrays as a part, once they are checked.

    Args:
        what: names them in messages.
        images: (n, height, width) or (n, height, width, channels); uint8, other integers in 0..255, or float.
        labels: (n,) or (n, 1), integers from 0.
        train_labels: the training labels, if these are not they: no label may lie beyond them.

    Raises:
        BadInputError: they break one of these rules.
    """
    pixels = _checked_images(what, np.asarray(images))
    classes = _checked_labels(what, np.asarray(labels), len(pixels))
    if train_labels is not None and classes.max() > np.max(train_labels):
        raise BadInputError(
            f"the labels of {what} must be among the training labels, 0 to {np.max(train_labels)}. "
            f"Received: {classes.max()}. Correct the labels."
        )
    return Part(ArrayImages(pixels), classes)


def _checked_images(what: str, images: np.ndarray) -> np.ndarray:
    """Return images as (n, height, width, channels), uint8 or float32."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise BadInputError(
            f"{what} must hold images of shape (n, height, width, channels). Received: shape {images.shape}."
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise BadInputError(
            f"{what} must have its channels last. Received: shape {images.shape}. Use x.transpose(0, 2, 3, 1)."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise BadInputError(f"{what} must be uint8 or float. Received: {images.dtype}. Convert the images.")
    low, high = images.min(), images.max()
    if images.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadInputError(f"{what} must hold finite numbers. Received: NaN or infinity. Remove those images.")
        return images.astype(np.float32, copy=False)
    if low < 0 or high > 255:
        raise BadInputError(f"{what} must hold integers in 0..255. Received: {low} to {high}. Scale the images.")
    return images.astype(np.uint8)


def _checked_labels(what: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    """Return labels as (n,) int32."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise BadInputError(
            f"the labels of {what} must have shape (n,). Received: {labels.shape}. For one-hot, use labels.argmax(1)."
        )
    if labels.dtype.kind not in "iu":
        raise BadInputError(
            f"the labels of {what} must be integers. Received: {labels.dtype}. Use labels.astype('int64')."
        )
    if len(labels) != num_images:
        raise BadInputError(f"{what} needs one label an image. Received: {len(labels)} labels, {num_images} images.")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise BadInputError(
            f"the labels of {what} must count from 0. Received: {labels.min()} to {labels.max()}. Renumber the classes."
        )
    return labels.astype(np.int32)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
