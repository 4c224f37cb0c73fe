"""`pbd.Data`: the images of a run, as arrays or other Python objects, or by name."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pbd.config import DataConfig
from pbd.data.arrays import RawSplit, RawSplits, array_split, checked_images
from pbd.data.materialise import Arrays, as_arrays
from pbd.errors import BadInputError, UsageError

ARRAYS = "arrays"
"""The name of a data set that was given as Python objects."""
_NPZ_ROLES = {"train": "train", "validation": "val", "test": "test"}
"""The splits, and their names in an `.npz` data set."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """Training, validation and test images, and how batches are made of them.

    A split is a tuple `(images, labels)`, images without labels, a `keras.utils.PyDataset`, or a finite
    `tf.data.Dataset` of single images or of batches. Images have the shape (n, height, width, channels) or (n, height,
    width) and are uint8, other integers in 0..255, or finite floats. Labels have the shape (n,) or (n, 1) and are
    whole numbers from 0, or booleans; turn one-hot labels into numbers with `labels.argmax(1)`. A missing test split is
    taken from the training images, a missing validation split from those or from the test images (`validation_from`).

    A `PyDataset` or `tf.data.Dataset` is read once, in its order, into memory, as uint8 if that changes no pixel.
    Random augmentation in it is therefore applied once; use `augment` instead. Sample weights are ignored. Worker
    processes read the arrays from the run directory, where they lie until the run ends.

    Args:
        train: the training split.
        validation: the split for every choice (best epoch, acceptance); give images that the teacher was not trained
            on. By default a part of the training images.
        test: the split for the figures at the end of a run, which no choice reads; by default a fifth of the training
            images.
        batch_size: images per training step.
        augment: none, flip, crop, rotate, flip_crop, or paper (all three), applied to training images.
        preprocess: none, unit (divide by 255), a `keras.applications` module such as vgg16, or auto: that of a
            `keras.applications` teacher given by name, none for other teachers.
        validation_fraction: share of the training images that becomes the validation split if there is none.
        validation_from: the source of the validation split if there is none: train, or test, of which one half then is
            the validation split and the other the test split.
        train_limit: use only this many training images.
        image_size: resize the images to this many pixels a side.
        labels: use the labels; without them, every choice is made by agreement with the teacher.
        split_seed: the seed of the validation split if it is missing; by default the seed of the run.
        source: see `load`, which sets it.

    Raises:
        BadInputError: the images or labels break one of these rules, or do not fit in memory.
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
    validation_from: str = DataConfig.validation_from
    train_limit: int | None = None
    image_size: int | None = None
    labels: bool = True
    split_seed: int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        arrays = [role for role in _NPZ_ROLES if getattr(self, role) is not None]
        if "train" not in arrays if self.source is None else arrays:
            received = ", ".join([*arrays, *(["source"] if self.source is not None else [])]) or "nothing"
            raise UsageError(f"data need either train or a source. Received: {received}. Give train, or use Data.load.")
        _ = self.config  # checks the settings
        for role in arrays:
            images, labels = as_arrays(role, getattr(self, role))
            object.__setattr__(self, role, (checked_images(role, images), labels))
        self.raw_splits(self.labels)  # checks the labels

    def __repr__(self) -> str:
        if self.source is not None:
            return f"Data(source={self.source!r})"
        sizes = [f"{role}={self._arrays(role)[0].shape}" for role in _NPZ_ROLES if getattr(self, role) is not None]
        return f"Data({', '.join(sizes)})"

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        batch_size: int = DataConfig.batch_size,
        augment: str = DataConfig.augment,
        preprocess: str = DataConfig.preprocess,
        validation_fraction: float = DataConfig.validation_fraction,
        validation_from: str = DataConfig.validation_from,
        train_limit: int | None = None,
        image_size: int | None = None,
        labels: bool = True,
        split_seed: int | None = None,
    ) -> "Data":
        """Return data that are read from a source when the run starts.

        Args:
            source: `digits`, a `keras.datasets` name such as `cifar10`, an `.npz` file (x_train, y_train, x_test, ...),
                a folder of images, or `tfds:NAME`.
            batch_size: see `Data`, as for all arguments below.
            augment: see `Data`.
            preprocess: see `Data`.
            validation_fraction: see `Data`.
            validation_from: see `Data`.
            train_limit: see `Data`.
            image_size: see `Data`; by default files take the size that the teacher needs.
            labels: see `Data`.
            split_seed: see `Data`.

        Raises:
            UsageError: a setting is out of its range. Errors of the source are raised when the run reads it.

        Example:
            >>> data = pbd.Data.load("cifar10.npz", augment="flip_crop")
        """
        return cls(
            source=str(source),
            batch_size=batch_size,
            augment=augment,
            preprocess=preprocess,
            validation_fraction=validation_fraction,
            validation_from=validation_from,
            train_limit=train_limit,
            image_size=image_size,
            labels=labels,
            split_seed=split_seed,
        )

    @property
    def config(self) -> DataConfig:
        """The settings of the run that these data stand for; the data set of arrays is called "arrays"."""
        names = {field.name for field in fields(DataConfig)} - {"dataset"}
        return DataConfig(dataset=self.source or ARRAYS, **{name: getattr(self, name) for name in names})

    def raw_splits(self, labels: bool) -> RawSplits | None:
        """Return the arrays, with or without their labels; `None` if the data have a source.

        Raises:
            BadInputError: only some splits have labels, or labels do not fit the images.
        """
        if self.source is not None:
            return None
        train = self._raw_split("train", labels)
        others = {
            role: self._raw_split(role, labels, train.labels)
            for role in ("validation", "test")
            if getattr(self, role) is not None
        }
        for role, split in others.items():
            if (split.labels is None) != (train.labels is None):
                without = role if split.labels is None else "train"
                raise BadInputError(
                    f"all splits need labels, or none. Received: {without} without. Add them, or give labels=False."
                )
        return RawSplits(train, **others)

    def save(self, stream: BinaryIO) -> None:
        """Write the arrays as an `.npz` data set that `pbd.data.load` reads."""
        arrays = {}
        for role, name in _NPZ_ROLES.items():
            if getattr(self, role) is not None:
                arrays[f"x_{name}"], labels = self._arrays(role)
                if labels is not None and self.labels:
                    arrays[f"y_{name}"] = labels
        np.savez(stream, allow_pickle=False, **arrays)

    def _arrays(self, role: str) -> Arrays:
        """Return the images and labels of a split that was given as Python objects."""
        images, labels = getattr(self, role)
        return images, labels

    def _raw_split(self, role: str, use_labels: bool, train_labels: np.ndarray | None = None) -> RawSplit:
        images, labels = self._arrays(role)
        return array_split(role, images, labels if use_labels else None, train_labels)


def check_data(data: object) -> None:
    """Check that data are a `Data`.

    Raises:
        UsageError: they are something else, such as arrays or the name of a data set.
    """
    if not isinstance(data, Data):
        raise UsageError(
            f"data must be a pbd.Data. Received: {type(data).__name__}. Give pbd.Data(train=(images, labels)), or "
            "pbd.Data.load(name) for a file, a folder or a data set."
        )
