"""Data sets that are stored as arrays: scikit-learn's digits, keras.datasets and .npz archives."""

import importlib.util
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pbd.data.arrays import RawSplit, RawSplits, array_split
from pbd.data.resizing import resized_bilinearly
from pbd.data.split_names import standard_arrays
from pbd.errors import BadInputError, MissingInputError
from pbd.system import watchdog

KERAS_CACHE = {
    "mnist": "mnist.npz",
    "fashion_mnist": "fashion-mnist/",
    "cifar10": "cifar-10-batches-py-target_archive",
    "cifar100": "cifar-100-python-target_archive",
}
"""Where Keras keeps the downloaded file of each of its data sets, or a folder of files."""
KERAS_NAMES = tuple(KERAS_CACHE)
DIGITS = "digits.csv.gz"
DIGITS_SHAPE, DIGITS_CLASSES = (32, 32, 1), 10
MOST_KEYS = 8
"""How many keys of an archive a message names."""


def load_digits(labels: bool = True) -> RawSplits:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 scaled up to 32x32x1, uint8; nothing is downloaded."""
    digits, targets = _read_digits()
    scaled = resized_bilinearly(digits[..., np.newaxis] * (255.0 / 16.0), *DIGITS_SHAPE[:2])
    images = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return RawSplits(array_split("digits", images, targets if labels else None))


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits, (1797, 8, 8), and their labels; the file is scikit-learn's, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    folders = (package and package.submodule_search_locations) or ()
    tables = [path for folder in folders if (path := Path(folder, "datasets", "data", DIGITS)).is_file()]
    if not tables:
        from sklearn import datasets

        digits = datasets.load_digits()
        return digits.images, digits.target
    table = np.loadtxt(tables[0], delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


@watchdog.waiting()
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
            f"Copy the file to $KERAS_HOME/datasets/{KERAS_CACHE[name]} (default of KERAS_HOME: ~/.keras), or give the "
            "images as an .npz file."
        ) from error
    if not labels:
        y_train = y_test = None
    return RawSplits(
        array_split(f"{name} train", x_train, y_train),
        test=array_split(f"{name} test", x_test, y_test, train_labels=y_train),
    )


def load_npz(path: Path, labels: bool = True) -> RawSplits:
    """Return the images of an .npz archive: x_train, if it has them x_test and x_val, and a y for each or for none.

    Other usual spellings of these names will do, such as `train_images`, `X_valid` or `labels` (see `split_names`).

    Args:
        path: the archive.
        labels: read the y's; otherwise they may be anything.

    Raises:
        BadInputError: it is damaged, holds pickled objects, lacks arrays, holds two for one purpose, or unusable ones.
    """
    arrays = _read_npz(path, labels)

    def split(role: str) -> RawSplit | None:
        name = f"x_{role}"
        if name not in arrays:
            return None
        y, y_train = arrays.get(f"y_{role}"), arrays.get("y_train")
        return array_split(f"{path.name} {name}", arrays[name], y, train_labels=y_train)

    train = split("train")
    assert train is not None, "_read_npz requires x_train"
    return RawSplits(train, split("val"), split("test"))


@watchdog.waiting()
def _read_npz(path: Path, labels: bool) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz archive by their standard names, with or without the labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = _keys(archive.files, labels)
            return {name: archive[key] for name, key in keys.items()}
    except BadInputError:
        raise
    except PermissionError as error:
        raise MissingInputError(
            f"an .npz dataset must be readable. Received: {_one_line(error)}. Check its permissions."
        ) from error
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower() and zipfile.is_zipfile(path):
            remedy = "Save plain number arrays, not objects."
            raise BadInputError(f"an .npz must hold no pickled objects. Received: {str(path)!r}. {remedy}") from error
        remedy = "It may be damaged, or no .npz: save it again with numpy.savez."
        raise BadInputError(f"an .npz must be an archive of arrays. Received: {str(path)!r}. {remedy}") from error


def _keys(present: list[str], labels: bool) -> dict[str, str]:
    """Return the key of each array that is read, by its standard name.

    Raises:
        BadInputError: two keys have one meaning, or arrays are missing.
    """
    spellings = {name: keys for name, keys in standard_arrays(present).items() if labels or name.startswith("x_")}
    for name, keys in spellings.items():
        if len(keys) > 1:
            raise BadInputError(
                f"an .npz dataset must have one array for {name}. Received: {keys[0]!r} and {keys[1]!r}. "
                f"Name the one to use {name}."
            )
    missing = _missing(list(spellings))
    if missing:
        only_labels = all(name.startswith("y_") for name in missing)
        more = f" and {len(present) - MOST_KEYS} more" if len(present) > MOST_KEYS else ""
        raise BadInputError(
            "an .npz dataset needs x_train, may have x_test and x_val, and has a y for each of them or for none. "
            f"Received: {', '.join(present[:MOST_KEYS]) or 'no arrays'}{more}. "
            f"Add {', '.join(missing)}{', or give --no-labels' if only_labels else ''}."
        )
    return {name: keys[0] for name, keys in spellings.items()}


def _missing(present: list[str]) -> list[str]:
    """Return the arrays that an archive with these arrays lacks: x_train, and a y for each x if there is any y."""
    kinds = {"x"} | {name[0] for name in present}
    roles = {"train"} | {name[2:] for name in present}
    return sorted({f"{kind}_{role}" for kind in kinds for role in roles} - set(present))


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
