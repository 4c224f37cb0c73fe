"""Augmentation and mixing, drawn by NumPy and applied by TensorFlow."""

from typing import TYPE_CHECKING

import numpy as np

from pbd.data.augmentation import OPERATIONS, affine_maps, interpolates
from pbd.data.mixing import Mixture, mixed

if TYPE_CHECKING:
    import tensorflow as tf

    from pbd.data.dataset import Dataset


def augmented(
    images: "tf.Tensor",
    name: str,
    key: tuple[int, "int | tf.Tensor"],
    first: int = 0,
    positions: "tf.Tensor | None" = None,
) -> "tf.Tensor":
    """Return images of a batch, (n, height, width, channels) float32, each changed at random.

    Args:
        images: height and width are static.
        name: one of `pbd.config.AUGMENTATIONS`.
        key: seed and step, which determine the random numbers of the whole batch.
        first: position of these images in the whole batch.
        positions: position of each image in the whole batch, (n,) int64, if they are not consecutive.
    """
    import tensorflow as tf

    if not OPERATIONS[name]:
        return images
    height, width = images.shape[1:3]
    seed, step = key
    if positions is None:
        positions = first + tf.range(tf.shape(images, tf.int64)[0])

    def transforms(positions: np.ndarray, step: np.ndarray) -> np.ndarray:
        start = positions[0]
        maps = affine_maps(name, positions[-1] - start + 1, height, width, seed, int(step), start)
        return np.pad(maps[positions - start], [(0, 0), (0, 2)])  # the last row of a projective map, without its 1

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.ensure_shape(tf.numpy_function(transforms, [positions, step], tf.float32), [None, 8]),
        output_shape=tf.constant([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR" if interpolates(name) else "NEAREST",
        fill_mode="REFLECT",
    )


def drawn_mixture(dataset: "Dataset", step: "tf.Tensor") -> Mixture:
    """Return the mixture of a step as tensors."""
    import tensorflow as tf

    def draw(step: np.ndarray) -> Mixture:
        return dataset.mixture(int(step))

    parts = tf.numpy_function(draw, [step], [tf.int64, tf.int64, tf.int64, tf.float32, tf.int32, tf.float32])
    count = dataset.own_images.stop - dataset.own_images.start
    shapes = ([None], [count], [count], [count], [count, 4], [count])
    return Mixture(*(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)))


def mixed_share(images: "tf.Tensor", drawn: Mixture) -> "tf.Tensor":
    """Return a worker's share of a batch, mixed; `images` are those of `drawn.positions`."""
    import tensorflow as tf

    own_images, partners = tf.gather(images, drawn.own_images), tf.gather(images, drawn.partners)
    return mixed(tf, own_images, partners, drawn.weights, drawn.boxes)


def mixed_labels(labels: "tf.Tensor", drawn: Mixture) -> "tf.Tensor":
    """Return the labels of a worker's share of a mixed batch, (n, 3) float32; see `pbd.data.mixing.mixed_labels`."""
    import tensorflow as tf

    labels = tf.cast(labels, tf.float32)
    return tf.stack([tf.gather(labels, drawn.own_images), tf.gather(labels, drawn.partners), drawn.shares], axis=1)
