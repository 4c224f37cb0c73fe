"""The images of a run in three splits, and the batches that are read from them.

Workers that share batches each read a share of every training batch, and some of the batches of a split that is read in
order; together they read what one worker alone would read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pbd.data import feeds
from pbd.data.images import ArrayImages, FileImages
from pbd.data.order import WHOLE, WorkerShare
from pbd.data.shapes import Shape
from pbd.errors import UsageError, unknown_name


@dataclass(frozen=True, eq=False)
class IndexedSplit:
    """Rows of a store of images; `labels`, (n,) int32, belong to `rows`, (n,) int64."""

    images: ArrayImages | FileImages
    rows: np.ndarray
    labels: np.ndarray

    @classmethod
    def whole(cls, images: ArrayImages | FileImages, labels: np.ndarray) -> "IndexedSplit":
        """Return the split of all images of a store."""
        return cls(images, np.arange(len(labels)), labels)

    def __len__(self) -> int:
        return len(self.rows)

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield what distinguishes this split from others."""
        yield self.rows.tobytes()
        yield self.labels.tobytes()
        yield from self.images.content()


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """A stream too large for memory, always read in the same order: `size` elements for `decode`.

    An epoch is shuffled within a buffer, seeded by the epoch: not a full shuffle, unlike `IndexedSplit`.
    """

    stream: Callable[[], Any]
    """Returns a `tf.data.Dataset`."""
    size: int
    decode: Callable[[dict[str, Any]], tuple[Any, Any]]
    """Maps an element of the stream to its image and its label."""

    def __len__(self) -> int:
        return self.size

    def content(self) -> Iterator[bytes | memoryview]:
        yield str(self.size).encode()


Split = IndexedSplit | StreamSplit
"""Images with labels, before augmentation and preprocessing; a label is `NO_LABEL` if there are none."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, and how batches are made of them."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int | None
    """`None` where labels are not used: the teacher knows its classes."""
    image_shape: Shape
    """(height, width, channels) of every image of a batch."""
    batch_size: int
    augment: str
    preprocess: str
    seed: int
    labelled: bool = True
    """Whether there are labels to use; if not, every label of a batch is -1."""
    worker: WorkerShare = WHOLE
    """This worker's share of every training batch, or of the batches of a split read in order."""
    unit: int = 1
    """Images of a training batch that stay together."""

    def shared(self, worker: WorkerShare, unit: int = 1) -> "Dataset":
        """Return the same data as one of several workers reads them that train one thing together.

        Args:
            worker: its share of every training batch, and of the batches of splits read in order.
            unit: images of a training batch that stay together; it divides the batch.

        Raises:
            UsageError: there is not a unit of images for each worker.
        """
        if worker.count * unit > self.batch_size:
            raise UsageError(
                f"workers that share a batch need {unit} images each. Received: {worker.count} workers, --batch-size "
                f"{self.batch_size}. Raise it, or give --parallel task."
            )
        return replace(self, worker=worker, unit=unit)

    def digest(self) -> str:
        """Return a SHA-256 of the splits: images, or the names of their files, and labels; of a stream, its sizes."""
        checksum = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for part in split.content():
                checksum.update(part)
        return checksum.hexdigest()

    @property
    def own(self) -> slice:
        """Which images of a training batch this worker reads."""
        units = self.worker.of(self.batch_size // self.unit)
        return slice(units.start * self.unit, units.stop * self.unit)

    @property
    def steps_per_epoch(self) -> int:
        """Full training batches in an epoch; what is left over is dropped, other images in every epoch."""
        return len(self.train) // self.batch_size

    @property
    def share(self) -> float:
        """The fraction of every training batch that this worker reads."""
        return (self.own.stop - self.own.start) / self.batch_size

    def training_batches(self, first_epoch: int, epochs: int) -> Iterable[tuple[Any, Any]]:
        """Return the batches of epochs [first_epoch, epochs), `steps_per_epoch` for each.

        Batch k of epoch e is the same in every process, and wherever reading began.

        Returns:
            Images, (batch_size, *image_shape) float32, augmented and preprocessed, and labels, (batch_size,) int32; of
            a shared dataset, this worker's share of them.
        """
        return feeds.current().training_batches(self, first_epoch, epochs)

    def batches(self, split_name: str, limit: int | None = None) -> Iterable[tuple[Any, Any]]:
        """Return a split once, in a fixed order, without augmentation; of a shared dataset, some of the batches.

        Args:
            split_name: train, validation or test.
            limit: the most images to return; every prefix of train and validation is class-balanced (not of a stream,
                nor without labels).

        Returns:
            Images, (batch, *image_shape) float32, preprocessed, and labels, (batch,) int32; the last batch may be
            smaller.

        Raises:
            UsageError: there is no such split.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if split_name not in splits:
            raise UsageError(unknown_name("split", split_name, splits))
        return feeds.current().batches_in_order(self, splits[split_name], limit)
