"""Batches from splits: what batch k of epoch e holds depends on (seed, e, k) and on nothing else.

Workers that train one thing together each read a part of every training batch, and some of the batches of a split that
is read in order; all parts together are what one worker alone would read.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pbd.data.augment import augmented
from pbd.data.images import ArrayImages, FileImages
from pbd.data.preprocessing import preprocessor
from pbd.data.shapes import Shape
from pbd.data.splitting import derived_seed
from pbd.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import tensorflow as tf

PARALLEL_CALLS = 4
"""Batches made at once, and threads for it. A fixed number: AUTOTUNE, which an experiment sets, takes others' cores."""
PREFETCHED = 2
SHUFFLE_BUFFER = 4096


@dataclass(frozen=True)
class Part:
    """One of several parts, as equal as can be."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return which of so many things in a row belong to this part."""
        return slice(self.index * size // self.count, (self.index + 1) * size // self.count)


WHOLE = Part()


class Split(ABC):
    """Images with labels, each of them `NO_LABEL` where there are none, before augmentation and preprocessing."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def content(self) -> Iterator[bytes | memoryview]:
        """Yield what tells this split from others."""

    @abstractmethod
    def steps(self, first_epoch: int, epochs: int, batch_size: int, seed: int, own: slice) -> "tf.data.Dataset":
        """Return (step, images, labels) of epochs [first_epoch, epochs), each shuffled anew; of each batch, a slice.

        `step`, an int64, counts full batches from the first one of epoch 0.
        """

    @abstractmethod
    def in_order(self, batch_size: int, limit: int | None, part: Part) -> "tf.data.Dataset":
        """Return (images, labels) in a fixed order, at most `limit` images; the last batch may be smaller.

        Of several parts, each has every so many-th batch.
        """


@dataclass(frozen=True, eq=False)
class IndexedSplit(Split):
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
        yield self.rows.tobytes()
        yield self.labels.tobytes()
        yield from self.images.content()

    def steps(self, first_epoch: int, epochs: int, batch_size: int, seed: int, own: slice) -> "tf.data.Dataset":
        import tensorflow as tf

        count, per_epoch, read = len(self), len(self) // batch_size, self._reader()
        order_seed = derived_seed(seed, "order")

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            # Not index_shuffle, which needs no memory: its order is far from random (lag-1 correlation -0.10).
            key = tf.stack([tf.constant(order_seed, tf.int64), epoch])
            order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), key, alg="philox")
            rows = tf.reshape(order[: per_epoch * batch_size], [per_epoch, batch_size])[:, own]
            return tf.data.Dataset.from_tensor_slices((epoch * per_epoch + tf.range(per_epoch, dtype=tf.int64), rows))

        steps = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
        return steps.map(
            lambda step, positions: (step, *read(positions)), num_parallel_calls=PARALLEL_CALLS, deterministic=True
        )

    def in_order(self, batch_size: int, limit: int | None, part: Part) -> "tf.data.Dataset":
        import tensorflow as tf

        count = len(self) if limit is None else min(limit, len(self))
        positions = tf.data.Dataset.range(count).batch(batch_size).shard(part.count, part.index)
        return positions.map(self._reader(), num_parallel_calls=PARALLEL_CALLS, deterministic=True)

    def _reader(self) -> Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]:
        """Return the function from positions in this split to images and labels."""
        import tensorflow as tf

        self.images.prepare()
        with tf.device("CPU"):
            rows, labels = tf.constant(self.rows, tf.int64), tf.constant(self.labels, tf.int32)
        return lambda at: (self.images.read(tf.gather(rows, at)), tf.gather(labels, at))


@dataclass(frozen=True, eq=False)
class StreamSplit(Split):
    """A stream too large for memory, always read in the same order: `size` elements for `decode`.

    An epoch is shuffled within a buffer of 4,096 images, seeded by the epoch.
    """

    stream: Callable[[], "tf.data.Dataset"]
    size: int
    decode: Callable[[dict[str, "tf.Tensor"]], tuple["tf.Tensor", "tf.Tensor"]]
    """From an element of the stream to its image and label."""

    def __len__(self) -> int:
        return self.size

    def content(self) -> Iterator[bytes | memoryview]:
        yield str(self.size).encode()

    def steps(self, first_epoch: int, epochs: int, batch_size: int, seed: int, own: slice) -> "tf.data.Dataset":
        import tensorflow as tf

        per_epoch, stream = len(self) // batch_size, self.stream()
        order_seed = derived_seed(seed, "order")

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            # Inside this function it seeds this graph alone: without it, the order hangs on the process' global seed.
            tf.random.set_seed(order_seed)
            shuffled = stream.shuffle(SHUFFLE_BUFFER, seed=epoch, reshuffle_each_iteration=False)
            mine = _every(shuffled.take(per_epoch * batch_size), lambda at: at % batch_size, own)
            batches = mine.map(self.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
            batches = batches.batch(own.stop - own.start, drop_remainder=True)
            steps = tf.data.Dataset.range(epoch * per_epoch, (epoch + 1) * per_epoch)
            return tf.data.Dataset.zip(steps, batches).map(lambda step, batch: (step, *batch))

        return tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)

    def in_order(self, batch_size: int, limit: int | None, part: Part) -> "tf.data.Dataset":
        stream = self.stream() if limit is None else self.stream().take(limit)
        own = slice(part.index, part.index + 1)
        mine = _every(stream, lambda at: at // batch_size % part.count, own)
        return mine.map(self.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True).batch(batch_size)


def _every(stream: "tf.data.Dataset", number: Callable[["tf.Tensor"], "tf.Tensor"], wanted: slice) -> "tf.data.Dataset":
    """Return the elements of a stream whose number, made of their position, lies in the slice."""
    numbered = stream.enumerate().filter(lambda at, _: (number(at) >= wanted.start) & (number(at) < wanted.stop))
    return numbered.map(lambda _, element: element)


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
    part: Part = WHOLE
    """Which part of every batch, or of the batches, this worker reads."""
    unit: int = 1
    """Images of a training batch that stay together."""

    def shared(self, part: Part, unit: int = 1) -> "Dataset":
        """Return the same data as one of several workers reads them that train one thing together.

        Args:
            part: which part of every training batch, and of the batches of splits read in order.
            unit: images of a training batch that stay together; it divides the batch.

        Raises:
            UsageError: there is not a unit of images for each worker.
        """
        if part.count * unit > self.batch_size:
            raise UsageError(
                f"workers that share a batch need {unit} images each. Received: {part.count} workers, --batch-size "
                f"{self.batch_size}. Raise it, or give --parallel task."
            )
        return replace(self, part=part, unit=unit)

    def digest(self) -> str:
        """Return a SHA-256 of the splits: images, or the names of their files, and labels; of a stream, its sizes."""
        found = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for part in split.content():
                found.update(part)
        return found.hexdigest()

    @property
    def _own(self) -> slice:
        """Which images of a training batch this worker reads."""
        units = self.part.of(self.batch_size // self.unit)
        return slice(units.start * self.unit, units.stop * self.unit)

    @property
    def steps_per_epoch(self) -> int:
        """Full training batches in an epoch; what is left over is dropped, other images in every epoch."""
        return len(self.train) // self.batch_size

    @property
    def share(self) -> float:
        """How much of every training batch this worker reads."""
        return (self._own.stop - self._own.start) / self.batch_size

    def training_batches(self, first_epoch: int, epochs: int) -> "tf.data.Dataset":
        """Return the batches of epochs [first_epoch, epochs) in one go, `steps_per_epoch` for each.

        Batch k of epoch e is the same in every process and wherever reading began.

        Returns:
            Images, (batch_size, *image_shape) float32, augmented and preprocessed, and labels, (batch_size,) int32; of
            a shared dataset, this worker's part of them.
        """
        preprocess, seed = preprocessor(self.preprocess), derived_seed(self.seed, "augment")
        own = self._own

        def finish(step: "tf.Tensor", images: "tf.Tensor", labels: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
            return preprocess(augmented(images, self.augment, (seed, step), own.start)), labels

        steps = self.train.steps(first_epoch, epochs, self.batch_size, self.seed, own)
        return _fed(steps.map(finish, num_parallel_calls=PARALLEL_CALLS, deterministic=True))

    def batches(self, split_name: str, limit: int | None = None) -> "tf.data.Dataset":
        """Return a split once, in a fixed order, nothing dropped, not augmented; of a shared dataset, some batches.

        Args:
            split_name: train, validation or test.
            limit: the most images to return; every prefix of train and validation is class-balanced (one of a
                stream, or without labels, is not).

        Returns:
            Images, (batch, *image_shape) float32, preprocessed, and labels, (batch,) int32.

        Raises:
            UsageError: there is no such split.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if split_name not in splits:
            raise UsageError(unknown_name("split", split_name, splits))
        preprocess = preprocessor(self.preprocess)
        batches = splits[split_name].in_order(self.batch_size, limit, self.part)
        return _fed(batches.map(lambda x, y: (preprocess(x), y), num_parallel_calls=PARALLEL_CALLS, deterministic=True))


def _fed(batches: "tf.data.Dataset") -> "tf.data.Dataset":
    """Return the batches with the pipeline's own few threads, and a short queue ahead of the trainer."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = PARALLEL_CALLS == tf.data.AUTOTUNE
    if not options.autotune.enabled:
        options.threading.private_threadpool_size = PARALLEL_CALLS
        options.threading.max_intra_op_parallelism = 1
    return batches.prefetch(PREFETCHED).with_options(options)
