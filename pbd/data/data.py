"""`pbd.Data`: the images of a run, as arrays or other Python objects, or by name."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pbd.config import DataConfig
from pbd.data.sources import RawSplit, RawSplits, array_part
from pbd.errors import BadInputError, UsageError

ARRAYS = "arrays"
"""What the report calls images that were given as Python objects."""
_ROLES = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits, and what an `.npz` data set calls them."""
Pairs = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test images, and how batches are made of them.

    A split is a pair of arrays `(images, labels)`, an array of images without labels, a `keras.utils.PyDataset`, or a
    `tf.data.Dataset`, batched or not. Images have the shape (n, height, width, channels) or (n, height, width), of type
    uint8, another integer type in 0..255, or float; labels have the shape (n,) or (n, 1) and count from 0. A split that
    is missing is taken from the training images. A `PyDataset` or `tf.data.Dataset` is read once, into memory.

    Args:
        train: the training split; or `source`, see `load`.
        validation: every choice is made on it; by default a part of the training images.
        test: read once, at the end of a run; by default a fifth of the training images.
        batch_size: images per training step.
        augment: none, flip, crop, rotate, flip_crop, or paper (all three), applied to training images.
        preprocess: none, unit (divide by 255), a `keras.applications` module, or auto (none for a model from Python).
        validation_fraction: share of the training images that becomes the validation split if there is none.
        train_limit: use only this many training images.
        image_size: resize image files to this many pixels a side.
        labels: use the labels; without them, every choice is made by agreement with the teacher.
        source: what `load` was given.

    Raises:
        BadInputError: the arrays do not fit these rules.
        UsageError: a setting is out of its range.

    Example:
        >>> data = pbd.Data(train=(x, y), test=(x_test, y_test), batch_size=64, augment="flip_crop")
    """

    train: Any = None
    validation: Any = None
    test: Any = None
    batch_size: int = DataConfig.batch_size
    augment: str = DataConfig.augment
    preprocess: str = DataConfig.preprocess
    validation_fraction: float = DataConfig.validation_fraction
    train_limit: int | None = None
    image_size: int | None = None
    labels: bool = True
    source: str | None = None

    def __post_init__(self) -> None:
        if (self.train is None) == (self.source is None):
            received = "both" if self.source is not None else "neither"
            raise UsageError(
                f"data need training images or a source. Received: {received}. Give train, or use Data.load."
            )
        _ = self.config  # checks the settings
        for role in _ROLES if self.source is None else ():
            split = getattr(self, role)
            object.__setattr__(self, role, None if split is None else _as_arrays(role, split))
        if self.source is None:
            self.raw_splits(self.labels)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        batch_size: int = DataConfig.batch_size,
        augment: str = DataConfig.augment,
        preprocess: str = DataConfig.preprocess,
        validation_fraction: float = DataConfig.validation_fraction,
        train_limit: int | None = None,
        image_size: int | None = None,
        labels: bool = True,
    ) -> "Data":
        """Return data that are read from a source when the run starts.

        Args:
            source: `digits`, a `keras.datasets` name such as `cifar10`, an `.npz` file (x_train, y_train, x_test, ...),
                a folder of images, or `tfds:NAME`.
            batch_size: see `Data`, like the other arguments.
        """
        return cls(
            source=str(source),
            batch_size=batch_size,
            augment=augment,
            preprocess=preprocess,
            validation_fraction=validation_fraction,
            train_limit=train_limit,
            image_size=image_size,
            labels=labels,
        )

    @property
    def config(self) -> DataConfig:
        """The same as settings of a run."""
        names = {field.name for field in fields(DataConfig)} - {"dataset"}
        return DataConfig(dataset=self.source or ARRAYS, **{name: getattr(self, name) for name in names})

    def raw_splits(self, labels: bool) -> RawSplits | None:
        """Return the checked arrays, with or without their labels; None if the data have a source.

        Raises:
            BadInputError: they are no images, or their labels do not fit.
        """
        if self.source is not None:
            return None
        train_labels = self.train[1] if labels else None
        train = array_part("train", self.train[0], train_labels)

        def other(role: str) -> RawSplit | None:
            split: Pairs | None = getattr(self, role)
            if split is None:
                return None
            if labels and (split[1] is None) != (train_labels is None):
                raise BadInputError(
                    f"all splits need labels, or none. Received: labels for only one of train and {role}."
                )
            return array_part(role, split[0], split[1] if labels else None, train_labels=train.labels)

        return RawSplits(train, other("validation"), other("test"))

    def save(self, path: Path) -> None:
        """Write the arrays as an `.npz` data set that `load` reads."""
        arrays: dict[str, Any] = {}  # `Any`, as the stub of `savez` matches values with allow_pickle, too
        for role, short in _ROLES.items():
            split: Pairs | None = getattr(self, role)
            if split is not None:
                arrays[f"x_{short}"] = split[0]
                if split[1] is not None:
                    arrays[f"y_{short}"] = split[1]
        with path.open("wb") as file:
            np.savez(file, **arrays)


def _as_arrays(role: str, split: Any) -> Pairs:
    """Return a split as arrays of images and labels; the labels are None if there are none."""
    if isinstance(split, tuple | list) and len(split) == 2 and not np.isscalar(split[0]):
        return np.asarray(split[0]), None if split[1] is None else np.asarray(split[1])
    if hasattr(split, "__array__") and not hasattr(split, "element_spec"):
        return np.asarray(split), None
    if hasattr(split, "as_numpy_iterator"):
        return _joined(role, _batches_of_tf_data(split))
    if hasattr(split, "__getitem__") and (hasattr(split, "num_batches") or hasattr(split, "__len__")):
        return _joined(role, (split[index] for index in range(_number_of_batches(split))))
    raise BadInputError(
        f"{role} must be a pair of arrays, an array, a keras.utils.PyDataset or a tf.data.Dataset. "
        f"Received: {type(split).__name__}. Give (images, labels)."
    )


def _batches_of_tf_data(dataset: Any) -> Iterable[Any]:
    """Return the batches of a `tf.data.Dataset`; one that is not batched is read in batches."""
    spec = dataset.element_spec
    images = spec[0] if isinstance(spec, tuple) else spec
    return (dataset if len(images.shape) == 4 else dataset.batch(256)).as_numpy_iterator()


def _number_of_batches(dataset: Any) -> int:
    count = dataset.num_batches if hasattr(dataset, "num_batches") else len(dataset)
    if count is None:
        raise BadInputError("a PyDataset must know its number of batches. Received: num_batches is None.")
    return int(count)


def _joined(role: str, batches: Iterable[Any]) -> Pairs:
    """Return all batches in one pair of arrays; sample weights are dropped."""
    images, labels = [], []
    for batch in batches:
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        images.append(np.asarray(parts[0]))
        if len(parts) > 1:
            labels.append(np.asarray(parts[1]))
    if not images:
        raise BadInputError(f"{role} must have images. Received: none.")
    return np.concatenate(images), np.concatenate(labels) if labels else None
