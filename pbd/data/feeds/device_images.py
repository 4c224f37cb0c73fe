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
from pbd.data.feeds.sampling import augmented
from pbd.data.images import ArrayImages
from pbd.data.mixing import mixed, mixed_labels
from pbd.data.order import batch_bounds, training_positions
from pbd.data.preprocessing import preprocessor
from pbd.data.shapes import Shape
from pbd.data.splits import IndexedSplit, Split
from pbd.data.splitting import derived_seed
from pbd.system import memory

if TYPE_CHECKING:
    import jax

    from pbd.data.dataset import Dataset

MOST_OF_FREE_MEMORY = 0.25
"""Images are kept on the device if they take at most this share of the memory that is free there."""
_STORES: "weakref.WeakKeyDictionary[ArrayImages, jax.Array]" = weakref.WeakKeyDictionary()
"""One array on the device for each store, which all splits share."""

Batch = dict[str, Any]
"""What describes one batch: rows and labels of its images, affine maps if they are augmented, and, if they are mixed,
rows and maps of their partners, weights and boxes."""


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """A split of images on the device."""

    dataset: "Dataset"
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
        dataset = self.dataset
        batches = training_positions(len(self.rows), dataset.batch_size, dataset.seed, epoch)
        first_step = epoch * len(batches)
        steps = [self._step_inputs(positions, step) for step, positions in enumerate(batches, start=first_step)]
        return {name: np.stack([inputs[name] for inputs in steps]) for name in steps[0]}

    def _step_inputs(self, positions: np.ndarray, step: int) -> Batch:
        """Return what describes this worker's share of one batch, given the positions of its images in the split."""
        dataset, batch_size = self.dataset, self.dataset.batch_size
        in_share = np.arange(batch_size)[dataset.own_images]
        inputs = self._inputs(positions[in_share])
        maps = None
        if OPERATIONS[dataset.augment]:
            height, width = dataset.image_shape[:2]
            maps = affine_maps(dataset.augment, batch_size, height, width, derived_seed(dataset.seed, "augment"), step)
            inputs["maps"] = maps[in_share]
        if dataset.mixing:
            drawn = dataset.mixture(step)
            partners = drawn.positions[drawn.partners]
            inputs |= {"weights": drawn.weights, "boxes": drawn.boxes, "partner_rows": self._rows(positions[partners])}
            inputs["labels"] = mixed_labels(inputs["labels"], self.labels[positions[partners]], drawn.shares)
            if maps is not None:
                inputs["partner_maps"] = maps[partners]
        return inputs

    def inputs_in_order(self, limit: int | None) -> Iterator[Batch]:
        """Yield what describes each of this worker's batches of the split in order, without augmentation."""
        count = len(self.rows) if limit is None else min(limit, len(self.rows))
        for start, end in batch_bounds(count, self.dataset.batch_size, self.dataset.worker):
            yield self._inputs(np.arange(start, end))

    def _inputs(self, positions: np.ndarray) -> Batch:
        return {"rows": self._rows(positions), "labels": self.labels[positions]}

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return self.rows[positions].astype(np.int32)


@dataclass(frozen=True)
class BatchForm:
    """Builds a batch on the device: gather, augment, resize, preprocess."""

    image_shape: Shape
    preprocess: str
    bilinear: bool
    """Whether augmentation interpolates."""

    def __call__(self, images: "jax.Array", inputs: Batch) -> "jax.Array":
        """Return the images of a batch, (batch, height, width, channels) float32; can be traced by JAX."""
        import jax.numpy as jnp

        batch = self._augmented(images, inputs["rows"], inputs.get("maps"))
        if "weights" in inputs:
            partners = self._augmented(images, inputs["partner_rows"], inputs.get("partner_maps"))
            batch = mixed(jnp, batch, partners, inputs["weights"], inputs["boxes"])
        return preprocessor(self.preprocess)(batch.astype("float32"))

    def _augmented(self, images: "jax.Array", rows: Any, maps: Any) -> "jax.Array":
        import jax.numpy as jnp

        batch = _resized(jnp.take(images, rows, axis=0), self.image_shape)
        return batch if maps is None else augmented(jnp, batch, maps, self.bilinear)


@functools.cache
def compiled(form: BatchForm) -> Callable[["jax.Array", Batch], "jax.Array"]:
    """Return the compiled function that makes a batch."""
    import jax

    return jax.jit(form)


def on_device(dataset: "Dataset", split: Split) -> DeviceImages | None:
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
