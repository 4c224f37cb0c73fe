"""Images as TensorFlow tensors: read, decoded and resized."""

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pbd.data.images import ArrayImages, DamagedFiles, FileImages, encoded_image
from pbd.data.shapes import FreeShape, Shape
from pbd.data.splitting import NO_LABEL

if TYPE_CHECKING:
    import tensorflow as tf

_TENSORS: "weakref.WeakKeyDictionary[ArrayImages | FileImages, tf.Tensor]" = weakref.WeakKeyDictionary()
"""One tensor for each array or list of paths, which all pipelines share."""


def reader(images: ArrayImages | FileImages) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    """Return the function from rows of a store to images, (len(rows), *image_shape) float32.

    Call `reader` outside the functions of a pipeline, since it makes a tensor of the whole store.
    """
    import tensorflow as tf

    if images not in _TENSORS:
        with tf.device("CPU"):
            _TENSORS[images] = tf.constant(images.array if isinstance(images, ArrayImages) else list(images.paths))
    tensor, shape = _TENSORS[images], images.read_shape
    if isinstance(images, ArrayImages):
        stored = images.stored_shape
        return lambda rows: resized(tf.cast(tf.gather(tensor, rows), tf.float32), stored, shape)

    read_one = _read_file if images.is_checked else functools.partial(_read_file_or_black, images.damaged)
    signature = tf.TensorSpec(shape, tf.float32)
    return lambda rows: tf.map_fn(
        lambda path: read_one(path, shape), tf.gather(tensor, rows), fn_output_signature=signature
    )


def _read_file(path: "tf.Tensor", shape: Shape) -> "tf.Tensor":
    import tensorflow as tf

    return decoded(tf.io.read_file(path), shape)


def _read_file_or_black(damaged: DamagedFiles, path: "tf.Tensor", shape: Shape) -> "tf.Tensor":
    """Return the image in a file that was not checked; if it is damaged, a black image, the same in every process.

    A call of Python for each image is slower than `_read_file`, but one damaged file of a large data set costs neither
    the blocks nor the report.
    """
    import tensorflow as tf

    def read(name: bytes) -> np.ndarray:
        try:
            with tf.device("CPU"):
                return np.asarray(_read_file(tf.constant(name), shape))
        except tf.errors.InvalidArgumentError:
            damaged.add(name.decode(errors="replace"))
            return np.zeros(shape, np.float32)

    return tf.ensure_shape(tf.numpy_function(read, [path], tf.float32), shape)


def decoded(encoded: "tf.Tensor", shape: Shape) -> "tf.Tensor":
    """Return one encoded image as `shape`, float32 in 0..255.

    The image is resized bilinearly without regard to its proportions, as by `keras.utils.image_dataset_from_directory`:
    a teacher that was trained with that function sees the same pixels.
    """
    import tensorflow as tf

    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    if shape[2] == 1:
        image = tf.image.rgb_to_grayscale(image)
    return tf.ensure_shape(tf.image.resize(image, shape[:2], "bilinear"), shape)


def stream_decoder(shape: Shape) -> Callable[[dict[str, "tf.Tensor"]], tuple["tf.Tensor", "tf.Tensor"]]:
    """Return the function from an element of a stream, with an encoded image, to the image and its label."""

    def decode(element: dict[str, "tf.Tensor"]) -> tuple["tf.Tensor", "tf.Tensor"]:
        import tensorflow as tf

        return decoded(element["image"], shape), tf.cast(element.get("label", NO_LABEL), tf.int32)

    return decode


def can_be_decoded(path: str) -> bool:
    """Return whether a file is an image that TensorFlow decodes.

    Raises:
        MissingInputError: the file cannot be read.
    """
    import tensorflow as tf

    content = encoded_image(path)
    try:
        with tf.device("CPU"):
            decoded(tf.constant(content), (1, 1, 3))
    except tf.errors.OpError:
        return False
    return True


def resized(images: "tf.Tensor", stored: FreeShape, shape: Shape) -> "tf.Tensor":
    """Return a batch of float images with the size of `shape`, grayscale repeated to its channels."""
    import tensorflow as tf

    if stored[:2] != shape[:2]:
        images = tf.image.resize(images, shape[:2], "bilinear")
    if stored[2] != shape[2]:
        images = tf.repeat(images, shape[2], axis=-1)
    return images
