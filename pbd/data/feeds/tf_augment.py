"""The maps of `pbd.data.augmentation`, applied by TensorFlow to a batch of images."""

from typing import TYPE_CHECKING

import numpy as np

from pbd.data.augmentation import OPERATIONS, affine_maps, interpolates

if TYPE_CHECKING:
    import tensorflow as tf


def augmented(images: "tf.Tensor", name: str, key: tuple[int, "int | tf.Tensor"], first: int = 0) -> "tf.Tensor":
    """Return a batch of images, (n, height, width, channels) float32, each changed at random.

    Args:
        images: the batch; height and width are static.
        name: one of `pbd.config.AUGMENTATIONS`.
        key: seed and step, which determine the random numbers of the whole batch.
        first: position of these images in the whole batch.
    """
    import tensorflow as tf

    if not OPERATIONS[name]:
        return images
    height, width = images.shape[1:3]
    seed, step = key

    def transforms(count: np.ndarray, step: np.ndarray) -> np.ndarray:
        maps = affine_maps(name, int(count), height, width, seed, int(step), first)
        return np.pad(maps, [(0, 0), (0, 2)])  # the last row of a projective map, without its 1

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.ensure_shape(tf.numpy_function(transforms, [tf.shape(images)[0], step], tf.float32), [None, 8]),
        output_shape=tf.constant([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR" if interpolates(name) else "NEAREST",
        fill_mode="REFLECT",
    )
