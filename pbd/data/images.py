"""Stores of images that can be read in any order: an array, or a list of image files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pbd.data.shapes import FreeShape, Shape

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory, (n, height, width, channels), uint8 or float32; read as float32 in `image_shape`."""

    array: np.ndarray
    image_shape: Shape | None = None

    resizable = False

    def __len__(self) -> int:
        return len(self.array)

    @property
    def stored_shape(self) -> FreeShape:
        return self.array.shape[1:]

    @cached_property
    def pixel_max(self) -> float | None:
        """The largest value of float images; `None` for uint8, whose range is known."""
        return None if self.array.dtype == np.uint8 else float(self.array.max())

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield what tells these images from others."""
        yield f"{self.array.dtype.str}{self.array.shape}".encode()
        yield np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    @cached_property
    def _tensor(self) -> "tf.Tensor":
        import tensorflow as tf

        with tf.device("CPU"):
            return tf.constant(self.array)

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array, "image_shape": self.image_shape}

    def prepare(self) -> None:
        """Put the images where `read` finds them; call it outside the pipeline's functions."""
        _ = self._tensor

    def read(self, rows: "tf.Tensor") -> "tf.Tensor":
        """Return the images of these rows, (len(rows), *image_shape) float32."""
        import tensorflow as tf

        return fitted(tf.cast(tf.gather(self._tensor, rows), tf.float32), self.stored_shape, self.image_shape)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files (JPEG, PNG, BMP, GIF: its first frame), decoded as they are read, resized to `image_shape`."""

    paths: Sequence[str]
    image_shape: Shape | None = None

    resizable = True
    stored_shape: FreeShape = (None, None, None)
    pixel_max: float | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield what tells these images from others: their names, below the folder that has them all."""
        paths = [os.path.abspath(path) for path in self.paths]
        root = os.path.commonpath(paths) if paths else ""
        for path in paths:
            yield os.path.relpath(path, root).encode()

    @cached_property
    def _tensor(self) -> "tf.Tensor":
        import tensorflow as tf

        with tf.device("CPU"):
            return tf.constant(list(self.paths))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "image_shape": self.image_shape}

    def prepare(self) -> None:
        """Put the paths where `read` finds them; call it outside the pipeline's functions."""
        _ = self._tensor

    def read(self, rows: "tf.Tensor") -> "tf.Tensor":
        """Return the images of these rows, (len(rows), *image_shape) float32 in 0..255."""
        import tensorflow as tf

        def read_one(path: "tf.Tensor") -> "tf.Tensor":
            return decoded(tf.io.read_file(path), self.image_shape)

        signature = tf.TensorSpec(self.image_shape, tf.float32)
        return tf.map_fn(read_one, tf.gather(self._tensor, rows), fn_output_signature=signature)


def decoded(encoded: "tf.Tensor", shape: Shape) -> "tf.Tensor":
    """Return one encoded image as `shape`, float32 in 0..255.

    It is stretched bilinearly, as `keras.utils.image_dataset_from_directory` does, so that a teacher trained
    with that sees the same pixels.
    """
    import tensorflow as tf

    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    if shape[2] == 1:
        image = tf.image.rgb_to_grayscale(image)
    return tf.ensure_shape(tf.image.resize(image, shape[:2], "bilinear"), shape)


def fitted(images: "tf.Tensor", stored: FreeShape, shape: Shape) -> "tf.Tensor":
    """Return a batch of float images with `shape`'s size, grayscale repeated to its channels."""
    import tensorflow as tf

    if stored[:2] != shape[:2]:
        images = tf.image.resize(images, shape[:2], "bilinear")
    if stored[2] != shape[2]:
        images = tf.repeat(images, shape[2], axis=-1)
    return images
