"""Images that stay on the device of the JAX backend: a batch is made there from an index array.

The images are stored as they are, one byte a value where they are bytes. Each batch is gathered, augmented, resized and
preprocessed on the device, in a compiled function; the host sends positions and affine maps only.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pbd.data.augmentation import OPERATIONS, affine_maps, interpolates
from pbd.data.dataset import Dataset, IndexedSplit, Split
from pbd.data.feeds.sampling import augmented
from pbd.data.images import ArrayImages
from pbd.data.order import batch_bounds, training_positions
from pbd.data.preprocessing import preprocessor
from pbd.data.shapes import Shape
from pbd.data.splitting import derived_seed
from pbd.system import memory

if TYPE_CHECKING:
    import jax

MOST_OF_FREE_MEMORY = 0.25
"""Images are kept on the device if they take at most this share of the memory that is free there."""
_STORES: "weakref.WeakKeyDictionary[ArrayImages, jax.Array]" = weakref.WeakKeyDictionary()
"""One array on the device for each store, which all splits share."""

Batch = dict[str, Any]
"""What describes one batch: arrays of rows, and of affine maps if the images are augmented."""


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """A split of images on the device."""

    dataset: Dataset
    images: "jax.Array"
    """(n, height, width, channels) of the whole store, uint8 or float32."""
    rows: np.ndarray
    """The rows of the split in the store, (images of the split,) int64."""
    labels: np.ndarray
    """(images of the split,) int32."""

    @property
    def form(self) -> "BatchForm":
        """How a batch is made."""
        dataset = self.dataset
        return BatchForm(dataset.image_shape, dataset.preprocess, interpolates(dataset.augment))

    def training_inputs(self, epoch: int) -> Batch:
        """Return what describes this worker's share of the batches of an epoch: arrays with one row for each step."""
        dataset, own = self.dataset, self.dataset.own_images
        positions = training_positions(len(self.rows), dataset.batch_size, dataset.seed, epoch)[:, own]
        inputs = self._inputs(positions)
        if OPERATIONS[dataset.augment]:
            first_step, seed = epoch * len(positions), derived_seed(dataset.seed, "augment")
            height, width = dataset.image_shape[:2]
            steps = range(first_step, first_step + len(positions))
            count = own.stop - own.start
            inputs["maps"] = np.stack(
                [affine_maps(dataset.augment, count, height, width, seed, step, own.start) for step in steps]
            )
        return inputs

    def inputs_in_order(self, limit: int | None) -> Iterator[Batch]:
        """Yield what describes each of this worker's batches of the split in order, without augmentation."""
        count = len(self.rows) if limit is None else min(limit, len(self.rows))
        for start, end in batch_bounds(count, self.dataset.batch_size, self.dataset.worker):
            yield self._inputs(np.arange(start, end))

    def _inputs(self, positions: np.ndarray) -> Batch:
        return {"rows": self.rows[positions].astype(np.int32), "labels": self.labels[positions]}


@dataclass(frozen=True)
class BatchForm:
    """How a batch is made from a store of images."""

    image_shape: Shape
    preprocess: str
    bilinear: bool
    """Whether augmentation interpolates."""

    def __call__(self, images: "jax.Array", inputs: Batch) -> "jax.Array":
        """Return the images of a batch, (batch, height, width, channels) float32; can be traced by JAX."""
        import jax.numpy as jnp

        batch = _resized(jnp.take(images, inputs["rows"], axis=0), self.image_shape)
        if "maps" in inputs:
            batch = augmented(jnp, batch, inputs["maps"], self.bilinear)
        return preprocessor(self.preprocess)(batch.astype(jnp.float32))


@functools.cache
def compiled(form: BatchForm) -> Callable[["jax.Array", Batch], "jax.Array"]:
    """Return the compiled function that makes a batch."""
    import jax

    return jax.jit(form)


def on_device(dataset: Dataset, split: Split) -> DeviceImages | None:
    """Return the split's images on the device; `None` if they are files or a stream, or take too much memory there."""
    if not isinstance(split, IndexedSplit) or not isinstance(split.images, ArrayImages):
        return None
    if split.images not in _STORES:
        if split.images.array.nbytes > MOST_OF_FREE_MEMORY * memory.free_device_memory():
            return None
        import jax

        _STORES[split.images] = jax.device_put(split.images.array)
    return DeviceImages(dataset, _STORES[split.images], split.rows, split.labels)


def _resized(images: "jax.Array", shape: Shape) -> "jax.Array":
    """Return images of the size of `shape`, float32 if they are interpolated; grayscale is repeated to its channels."""
    import jax
    import jax.numpy as jnp

    if images.shape[1:3] != shape[:2]:
        size = (images.shape[0], *shape[:2], images.shape[3])
        images = jax.image.resize(images.astype(jnp.float32), size, "bilinear", antialias=False)
    return jnp.repeat(images, shape[2], axis=-1) if images.shape[3] != shape[2] else images
