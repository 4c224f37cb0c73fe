"""The feed that makes batches in threads with NumPy, for backends other than TensorFlow."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pbd.data.augmentation import OPERATIONS, affine_maps, interpolates
from pbd.data.feeds.ahead import made_ahead
from pbd.data.feeds.numpy_images import can_be_decoded, reader
from pbd.data.feeds.sampling import augmented
from pbd.data.mixing import Mixture, mixed, mixed_labels
from pbd.data.order import batch_bounds, training_positions
from pbd.data.preprocessing import preprocessor
from pbd.data.splits import IndexedSplit, StreamSplit
from pbd.data.splitting import derived_seed
from pbd.errors import EnvironmentMismatchError

if TYPE_CHECKING:
    from pbd.data.dataset import Dataset
    from pbd.data.splits import Split

THREADS = 4
"""Threads that make batches, each a batch at a time."""
AHEAD = THREADS + 2
"""Batches that are made, or are ready, before they are asked for."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images, (batch, height, width, channels) float32, and labels, (batch,) int32, or `mixed_labels`."""


class NumpyFeed:
    """Feeds batches as NumPy arrays."""

    def training_batches(self, dataset: "Dataset", first_epoch: int, end_epoch: int) -> Iterator[Batch]:
        split, own_images = _indexed(dataset.train), dataset.own_images
        read, augment, preprocess = reader(split.images), _augmenter(dataset), preprocessor(dataset.preprocess)

        def make(item: tuple[int, np.ndarray]) -> Batch:
            step, rows = item
            if not dataset.mixing:
                positions = np.arange(dataset.batch_size)[own_images]
                images, labels = (
                    augment(read(split.rows[rows[positions]]), step, positions),
                    split.labels[rows[positions]],
                )
            else:
                drawn = dataset.mixture(step)
                images, labels = _mixed(
                    augment(read(split.rows[rows[drawn.positions]]), step, drawn.positions),
                    split.labels[rows[drawn.positions]],
                    drawn,
                )
            return _preprocessed(preprocess, images), labels

        return made_ahead(make, _steps(dataset, first_epoch, end_epoch), THREADS, AHEAD)

    def batches_in_order(self, dataset: "Dataset", split: "Split", limit: int | None) -> Iterator[Batch]:
        rows = _indexed(split)
        read, preprocess = reader(rows.images), preprocessor(dataset.preprocess)

        def make(bounds: np.ndarray) -> Batch:
            positions = slice(*bounds)
            return _preprocessed(preprocess, read(rows.rows[positions])), rows.labels[positions]

        count = len(rows) if limit is None else min(limit, len(rows))
        return made_ahead(make, batch_bounds(count, dataset.batch_size, dataset.worker), THREADS, AHEAD)

    def damaged_files(self, paths: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(THREADS) as threads:
            return [path for path, good in zip(paths, threads.map(can_be_decoded, paths), strict=True) if not good]


def _indexed(split: "Split") -> IndexedSplit:
    if isinstance(split, StreamSplit):
        raise EnvironmentMismatchError(
            "a stream needs the TensorFlow backend. Received: another backend. Set KERAS_BACKEND=tensorflow."
        )
    return split


def _mixed(images: np.ndarray, labels: np.ndarray, drawn: Mixture) -> Batch:
    """Return a worker's share of a batch, mixed; images and labels are those of `drawn.positions`."""
    own_images, partners = drawn.own_images, drawn.partners
    return (
        mixed(np, images[own_images], images[partners], drawn.weights, drawn.boxes),
        mixed_labels(labels[own_images], labels[partners], drawn.shares),
    )


def _steps(dataset: "Dataset", first_epoch: int, end_epoch: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each step, counted from epoch 0, and the positions of the images of the whole batch."""
    for epoch in range(first_epoch, end_epoch):
        positions = training_positions(len(dataset.train), dataset.batch_size, dataset.seed, epoch)
        yield from enumerate(positions, start=epoch * len(positions))


def _augmenter(dataset: "Dataset") -> Callable[[np.ndarray, int, np.ndarray], np.ndarray]:
    """Return the function that augments images of a step, which have these positions in the whole batch."""
    name, seed, batch_size = dataset.augment, derived_seed(dataset.seed, "augment"), dataset.batch_size
    if not OPERATIONS[name]:
        return lambda images, step, positions: images
    height, width = dataset.image_shape[:2]

    def augment(images: np.ndarray, step: int, positions: np.ndarray) -> np.ndarray:
        maps = affine_maps(name, batch_size, height, width, seed, step)[positions]
        return augmented(np, images, maps, interpolates(name))

    return augment


def _preprocessed(preprocess: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Return images as preprocessed float32; preprocessing may reverse the channels of its view of the images."""
    return np.ascontiguousarray(preprocess(images.astype(np.float32, copy=False)), dtype=np.float32)
