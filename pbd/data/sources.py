"""Datasets held in arrays: scikit-learn's digits, keras.datasets and .npz archives."""

import importlib.util
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pbd.data.feeds.tf_images import resized_array
from pbd.data.images import ArrayImages, FileImages
from pbd.data.splitting import NO_LABEL
from pbd.errors import BadInputError, MissingInputError

KERAS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100")
DIGITS = "digits.csv.gz"
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val")


@dataclass(frozen=True)
class RawSplit:
    """Images that the data itself keeps together, and their labels, (n,) int32, or `None` without labels."""

    images: ArrayImages | FileImages
    labels: np.ndarray | None

    @property
    def batch_labels(self) -> np.ndarray:
        """What batches have as labels, (n,) int32: `NO_LABEL` for every image where there are none."""
        return np.full(len(self.images), NO_LABEL, np.int32) if self.labels is None else self.labels


@dataclass(frozen=True)
class RawSplits:
    """What a dataset brings; `None` where it leaves the split to us."""

    train: RawSplit
    validation: RawSplit | None = None
    test: RawSplit | None = None

    @property
    def num_classes(self) -> int | None:
        return None if self.train.labels is None else int(self.train.labels.max()) + 1


def load_digits(labels: bool = True) -> RawSplits:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 scaled up to 32x32x1, uint8; nothing is downloaded."""
    digits, targets = _read_digits()
    scaled = resized_array(digits[..., np.newaxis] * (255.0 / 16.0), (32, 32))
    images = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return RawSplits(array_part("digits", images, targets if labels else None))


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits, (1797, 8, 8), and their labels; the file is scikit-learn's, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    folders = (package and package.submodule_search_locations) or ()
    files = [path for folder in folders if (path := Path(folder, "datasets", "data", DIGITS)).is_file()]
    if not files:
        from sklearn import datasets

        digits = datasets.load_digits()
        return digits.images, digits.target
    table = np.loadtxt(files[0], delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def load_keras(name: str, labels: bool = True) -> RawSplits:
    """Return one of `keras.datasets`, from its cache or downloaded into it.

    Raises:
        MissingInputError: it is not in the cache and cannot be downloaded.
    """
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise MissingInputError(
            f"{name} must be in Keras' cache or be downloadable. Received: {_one_line(error)}. "
            "Put it under $KERAS_HOME/datasets (default ~/.keras), or give the images as an .npz file."
        ) from error
    if not labels:
        y_train = y_test = None
    return RawSplits(
        array_part(f"{name} train", x_train, y_train),
        test=array_part(f"{name} test", x_test, y_test, train_labels=y_train),
    )


def load_npz(path: Path, labels: bool = True) -> RawSplits:
    """Return the images of an .npz archive: x_train, if it has them x_test and x_val, and a y for each or for none.

    Args:
        path: the archive.
        labels: read the y's; otherwise they may be anything.

    Raises:
        BadInputError: it is damaged, holds pickled objects, lacks arrays, or holds unusable ones.
    """
    arrays = _read_npz(path, [name for name in NPZ_NAMES if labels or name.startswith("x_")])

    def part(role: str) -> RawSplit:
        what = f"x_{role}"
        y, y_train = arrays.get(f"y_{role}"), arrays.get("y_train")
        return array_part(f"{path.name} {what}", arrays[what], y, train_labels=y_train)

    def optional_part(role: str) -> RawSplit | None:
        return part(role) if f"x_{role}" in arrays else None

    return RawSplits(part("train"), optional_part("val"), optional_part("test"))


def _read_npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz archive that have one of the names, by name; names that it lacks are left out."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            present = [name for name in names if name in archive.files]
            missing = _missing(present)
            arrays = {} if missing else {name: archive[name] for name in present}
    except PermissionError as error:
        raise MissingInputError(f"an .npz dataset must be readable. Received: {_one_line(error)}.") from error
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower() and zipfile.is_zipfile(path):
            remedy = "Save plain number arrays, not objects."
            raise BadInputError(f"an .npz must hold no pickled objects. Received: {str(path)!r}. {remedy}") from error
        remedy = "It may be damaged, or no .npz: save it again with numpy.savez."
        raise BadInputError(f"an .npz must be an archive of arrays. Received: {str(path)!r}. {remedy}") from error
    if missing:
        only_labels = all(name.startswith("y_") for name in missing)
        raise BadInputError(
            "an .npz dataset needs x_train, may have x_test and x_val, and has a y for each of them or for none. "
            f"Received: {', '.join(present) or 'none of these'}. "
            f"Add {', '.join(missing)}{', or give --no-labels' if only_labels else ''}."
        )
    return arrays


def _missing(present: list[str]) -> list[str]:
    """Return the arrays that must stand beside the present ones: x_train, and a y for each x if there is any y."""
    kinds = {"x"} | {name[0] for name in present}
    roles = {"train"} | {name[2:] for name in present}
    return sorted({f"{kind}_{role}" for kind in kinds for role in roles} - set(present))


def array_part(
    what: str, images: np.ndarray, labels: np.ndarray | None, train_labels: np.ndarray | None = None
) -> RawSplit:
    """Return arrays as a part, once they are checked.

    Args:
        what: names them in messages.
        images: (n, height, width) or (n, height, width, channels); uint8, other integers in 0..255, or float.
        labels: (n,) or (n, 1), integers from 0; `None` where there are none.
        train_labels: the training labels, if these are not they: no label may lie beyond them.

    Raises:
        BadInputError: they break one of these rules.
    """
    pixels = _checked_images(what, np.asarray(images))
    if labels is None:
        return RawSplit(ArrayImages(pixels), None)
    classes = _checked_labels(what, np.asarray(labels), len(pixels))
    if train_labels is not None and classes.max() > np.max(train_labels):
        raise BadInputError(
            f"the labels of {what} must be among the training labels, 0 to {np.max(train_labels)}. "
            f"Received: {classes.max()}. Correct the labels."
        )
    return RawSplit(ArrayImages(pixels), classes)


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
