"""The feed that makes batches with `tf.data` pipelines."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.data.feeds.tf_augment import augmented, drawn_mixture, mixed_labels, mixed_share
from pbd.data.feeds.tf_images import can_be_decoded, reader
from pbd.data.images import ArrayImages
from pbd.data.mixing import Mixture
from pbd.data.order import WorkerShare, batch_bounds, training_positions
from pbd.data.preprocessing import preprocessor
from pbd.data.splits import IndexedSplit, StreamSplit
from pbd.data.splitting import derived_seed

if TYPE_CHECKING:
    import tensorflow as tf

    from pbd.data.dataset import Dataset
    from pbd.data.splits import Split

PARALLEL_CALLS = 4
"""Batches made in parallel, and threads for it; fixed, since AUTOTUNE (set by an experiment) takes cores of others."""
PREFETCHED = 2
"""Batches that are ready before they are asked for."""
SHUFFLE_BUFFER = 4096
"""Images of a stream among which an epoch is shuffled."""


class TfDataFeed:
    """Feeds batches as TensorFlow tensors, except arrays that are read in order, which stay NumPy arrays.

    NumPy reads them in less time than it takes to build a pipeline.
    """

    def training_batches(self, dataset: "Dataset", first_epoch: int, end_epoch: int) -> "tf.data.Dataset":

        preprocess, seed = preprocessor(dataset.preprocess), derived_seed(dataset.seed, "augment")
        name, first_image = dataset.augment, dataset.own_images.start

        def finish(step: "tf.Tensor", images: "tf.Tensor", labels: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
            return preprocess(augmented(images, name, (seed, step), first_image)), labels

        def finish_mixed(
            step: "tf.Tensor", drawn: Mixture, images: "tf.Tensor", labels: "tf.Tensor"
        ) -> tuple["tf.Tensor", "tf.Tensor"]:
            images = augmented(images, name, (seed, step), positions=drawn.positions)
            return preprocess(mixed_share(images, drawn)), mixed_labels(labels, drawn)

        steps, read = _steps(dataset, first_epoch, end_epoch)
        make = finish_mixed if dataset.mixing else finish
        return _prefetched(
            steps.map(lambda *step: make(*read(*step)), num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        )

    def batches_in_order(self, dataset: "Dataset", split: "Split", limit: int | None) -> Iterable[tuple[Any, Any]]:
        if isinstance(split, IndexedSplit) and isinstance(split.images, ArrayImages):
            return NumpyFeed().batches_in_order(dataset, split, limit)
        preprocess = preprocessor(dataset.preprocess)
        if isinstance(split, StreamSplit):
            batches = _stream_in_order(split, dataset.batch_size, limit, dataset.worker)
        else:
            batches = _rows_in_order(split, dataset.batch_size, limit, dataset.worker)
        return _prefetched(
            batches.map(lambda x, y: (preprocess(x), y), num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        )

    def damaged_files(self, paths: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(PARALLEL_CALLS) as threads:
            return [path for path, good in zip(paths, threads.map(can_be_decoded, paths), strict=True) if not good]


def _steps(
    dataset: "Dataset", first_epoch: int, end_epoch: int
) -> tuple["tf.data.Dataset", Callable[..., tuple["tf.Tensor", ...]]]:
    """Return the steps, and the function that reads this worker's share of one, before augmentation.

    It returns (step, images, labels), where `step`, an int64, counts full batches from the first one of epoch 0. With
    mixing, it returns (step, mixture, images, labels), with the images of `mixture.positions`.
    """
    import tensorflow as tf

    split, own_images = dataset.train, dataset.own_images
    images = slice(0, dataset.batch_size) if dataset.mixing else own_images

    if isinstance(split, StreamSplit):
        steps = _stream_steps(split, first_epoch, end_epoch, dataset.batch_size, dataset.seed, images)

        def select(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
            mixture = drawn_mixture(dataset, step)
            return step, mixture, tf.gather(images, mixture.positions), tf.gather(labels, mixture.positions)

        return steps, select if dataset.mixing else lambda *step: step

    read = _row_reader(split)

    def read_share(step: "tf.Tensor", at: "tf.Tensor") -> tuple["tf.Tensor", ...]:
        return step, *read(at)

    def read_mixture(step: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, ...]:
        mixture = drawn_mixture(dataset, step)
        return step, mixture, *read(tf.gather(at, mixture.positions))

    steps = _row_steps(split, first_epoch, end_epoch, dataset.batch_size, dataset.seed, images)
    return steps, read_mixture if dataset.mixing else read_share


def _row_steps(
    split: IndexedSplit, first_epoch: int, end_epoch: int, batch_size: int, seed: int, images: slice
) -> "tf.data.Dataset":
    """Return (step, positions in the split of some images of the batch)."""
    import tensorflow as tf

    count, per_epoch = len(split), len(split) // batch_size

    def positions(epoch: np.ndarray) -> np.ndarray:
        return training_positions(count, batch_size, seed, int(epoch))[:, images]

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.ensure_shape(tf.numpy_function(positions, [epoch], tf.int64), [per_epoch, images.stop - images.start])
        return tf.data.Dataset.from_tensor_slices((epoch * per_epoch + tf.range(per_epoch, dtype=tf.int64), rows))

    return tf.data.Dataset.range(first_epoch, end_epoch).flat_map(one_epoch)


def _rows_in_order(split: IndexedSplit, batch_size: int, limit: int | None, share: WorkerShare) -> "tf.data.Dataset":
    import tensorflow as tf

    count = len(split) if limit is None else min(limit, len(split))
    read = _row_reader(split)
    bounds = tf.data.Dataset.from_tensor_slices(batch_bounds(count, batch_size, share))
    return bounds.map(lambda at: read(tf.range(at[0], at[1])), num_parallel_calls=PARALLEL_CALLS, deterministic=True)


def _row_reader(split: IndexedSplit) -> Callable[["tf.Tensor"], tuple["tf.Tensor", "tf.Tensor"]]:
    """Return the function from positions in a split to images and labels."""
    import tensorflow as tf

    read = reader(split.images)
    with tf.device("CPU"):
        rows, labels = tf.constant(split.rows, tf.int64), tf.constant(split.labels, tf.int32)
    return lambda at: (read(tf.gather(rows, at)), tf.gather(labels, at))


def _stream_steps(
    split: StreamSplit, first_epoch: int, end_epoch: int, batch_size: int, seed: int, images: slice
) -> "tf.data.Dataset":
    import tensorflow as tf

    per_epoch, stream, order_seed = len(split) // batch_size, split.stream(), derived_seed(seed, "order")

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Called in this function, it seeds only its graph; without it, the order depends on the global seed.
        tf.random.set_seed(order_seed)
        shuffled = stream.shuffle(SHUFFLE_BUFFER, seed=epoch, reshuffle_each_iteration=False)
        elements = _selected(shuffled.take(per_epoch * batch_size), lambda at: at % batch_size, images)
        batches = elements.map(split.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        batches = batches.batch(images.stop - images.start, drop_remainder=True)
        steps = tf.data.Dataset.range(epoch * per_epoch, (epoch + 1) * per_epoch)
        return tf.data.Dataset.zip(steps, batches).map(lambda step, batch: (step, *batch))

    return tf.data.Dataset.range(first_epoch, end_epoch).flat_map(one_epoch)


def _stream_in_order(split: StreamSplit, batch_size: int, limit: int | None, share: WorkerShare) -> "tf.data.Dataset":
    stream = split.stream() if limit is None else split.stream().take(limit)
    worker = slice(share.index, share.index + 1)
    elements = _selected(stream, lambda at: at // batch_size % share.count, worker)
    return elements.map(split.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True).batch(batch_size)


def _selected(
    stream: "tf.data.Dataset", number: Callable[["tf.Tensor"], "tf.Tensor"], numbers: slice
) -> "tf.data.Dataset":
    """Return the elements of a stream whose number, computed from their position, lies in the slice."""
    numbered = stream.enumerate().filter(lambda at, _: (number(at) >= numbers.start) & (number(at) < numbers.stop))
    return numbered.map(lambda _, element: element)


def _prefetched(batches: "tf.data.Dataset") -> "tf.data.Dataset":
    """Return the batches with a few threads of their own and a short queue ahead of the trainer."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = PARALLEL_CALLS == tf.data.AUTOTUNE
    if not options.autotune.enabled:
        options.threading.private_threadpool_size = PARALLEL_CALLS
        options.threading.max_intra_op_parallelism = 1
    return batches.prefetch(PREFETCHED).with_options(options)
