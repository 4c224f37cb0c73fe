"""The images of a run in three splits, and the batches that are read from them.

If workers share batches, each reads its share of every training batch, and every n-th batch of a split that is read in
order; together they read what one worker alone would read.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pbd.data import feeds
from pbd.data.images import ArrayImages, FileImages
from pbd.data.mixing import UNMIXED, Mixing, Mixture, mixture
from pbd.data.order import WHOLE, WorkerShare
from pbd.data.shapes import Shape
from pbd.data.splits import IndexedSplit, Split
from pbd.errors import BadInputError, UsageError, unknown_name


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits, and how batches are made of them."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int | None
    """`None` without labels: the outputs of the teacher are the classes."""
    image_shape: Shape
    """(height, width, channels) of every image of a batch."""
    batch_size: int
    augment: str
    preprocess: str
    seed: int
    labelled: bool = True
    """Whether labels are used; if not, every label of a batch is -1."""
    worker: WorkerShare = WHOLE
    """This worker's share of every training batch, or of the batches of a split read in order."""
    unit: int = 1
    """Images of a training batch that one worker reads together."""
    split_off: tuple[str, ...] = ()
    """Which of validation and test were split off the training images of the data set."""
    mixing: Mixing = UNMIXED
    """How training images are mixed in pairs."""

    def shared(self, worker: WorkerShare, unit: int = 1) -> "Dataset":
        """Return the same data as read by one of several workers that share batches.

        Args:
            worker: the number of the worker, and the number of workers.
            unit: images of a training batch that one worker reads together; a divisor of the batch size.

        Raises:
            UsageError: a batch has fewer units than there are workers.
        """
        if worker.count * unit > self.batch_size:
            raise UsageError(
                f"workers that share a batch need {unit} images each. Received: {worker.count} workers, --batch-size "
                f"{self.batch_size}. Raise it, or give --parallel task."
            )
        return replace(self, worker=worker, unit=unit)

    def check_trainable(self) -> None:
        """Check that there is a batch of training images.

        Raises:
            BadInputError: there are fewer.
        """
        if len(self.train) < self.batch_size:
            raise BadInputError(
                f"there must be at least one batch of training images. Received: {len(self.train)} training images "
                f"and a batch size of {self.batch_size}. Give a smaller --batch-size, or more images."
            )

    def digest(self) -> str:
        """Return a SHA-256 of the splits: images, or the names of their files, and labels; of a stream, its sizes."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for content in split.content():
                digest.update(content)
        return digest.hexdigest()

    @property
    def digest_is_complete(self) -> bool:
        """Whether the digest covers every pixel; otherwise the name of the data set has to identify the images."""
        splits = (self.train, self.validation, self.test)
        return all(isinstance(split, IndexedSplit) and isinstance(split.images, ArrayImages) for split in splits)

    def observe_damaged_files(self, observer: Callable[[str], object]) -> None:
        """Call `observer` with the name of every image file that a black image replaces, once for each split."""
        for split in (self.train, self.validation, self.test):
            if isinstance(split, IndexedSplit) and isinstance(split.images, FileImages):
                split.images.damaged.observe(observer)

    @property
    def own_images(self) -> slice:
        """The positions in a training batch that this worker reads."""
        units = self.worker.of(self.batch_size // self.unit)
        return slice(units.start * self.unit, units.stop * self.unit)

    def mixture(self, step: int) -> Mixture:
        """Return how this worker's share of a training batch is mixed; `step` counts full batches from epoch 0."""
        return mixture(self.mixing, self.batch_size, self.image_shape[:2], self.own_images, self.seed, step)

    @property
    def steps_per_epoch(self) -> int:
        """Full training batches in an epoch; the images left over, which differ from epoch to epoch, are dropped."""
        return len(self.train) // self.batch_size

    @property
    def share(self) -> float:
        """The fraction of every training batch that this worker reads."""
        return (self.own_images.stop - self.own_images.start) / self.batch_size

    def training_batches(self, first_epoch: int, end_epoch: int) -> Iterable[tuple[Any, Any]]:
        """Return the batches of epochs [first_epoch, end_epoch), `steps_per_epoch` for each.

        Batch k of epoch e is the same in every process, and wherever reading began.

        Returns:
            Images, (batch_size, *image_shape) float32, augmented, mixed and preprocessed, and labels, (batch_size,)
            int32, or those of `mixed_labels` if images are mixed; of a shared dataset, this worker's share of them.
        """
        return feeds.current().training_batches(self, first_epoch, end_epoch)

    def batches(self, split_name: str, limit: int | None = None) -> Iterable[tuple[Any, Any]]:
        """Return a split once, in a fixed order, without augmentation; of a shared dataset, some of the batches.

        Args:
            split_name: train, validation or test.
            limit: return at most this many images, the first ones; they are class-balanced if the data are labelled and
                no stream.

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
