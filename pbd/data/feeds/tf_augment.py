"""Random rotation, horizontal flip and crop of a batch, computed from a key: the same key gives the same images."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

MOST_DEGREES = 15.0
"""An image is rotated by at most this angle in either direction, evenly distributed."""
SIDES_PER_PADDING = 8
"""A crop moves the image by at most an eighth of its side: 4 pixels of 32."""
OPERATIONS = {
    "none": (),
    "flip": ("flip",),
    "crop": ("crop",),
    "rotate": ("rotate",),
    "flip_crop": ("flip", "crop"),
    "paper": ("flip", "crop", "rotate"),
}


def augmented(
    images: "tf.Tensor", name: str, key: tuple["int | tf.Tensor", "int | tf.Tensor"], first: int = 0
) -> "tf.Tensor":
    """Return a batch of images, (n, height, width, channels) float32, each changed at random.

    Rotation, crop (padded by reflection) and flip form one affine map, so each image is interpolated once. Flips and
    crops alone move pixels without changing their values.

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
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=_transforms(first + tf.shape(images)[0], height, width, OPERATIONS[name], key)[first:],
        output_shape=tf.constant([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR" if "rotate" in OPERATIONS[name] else "NEAREST",
        fill_mode="REFLECT",
    )


def _transforms(
    count: "tf.Tensor", height: int, width: int, operations: tuple[str, ...], key: tuple["int | tf.Tensor", ...]
) -> "tf.Tensor":
    """Return (count, 8) affine maps from pixels of the output to pixels of the input, about the centre."""
    import tensorflow as tf

    seed = tf.stack([tf.cast(k, tf.int64) for k in key])
    draws = tf.random.stateless_uniform([count, 4], seed, alg="philox")
    zeros = tf.zeros([count])
    mirror = tf.where(draws[:, 0] < 0.5, -1.0, 1.0) if "flip" in operations else zeros + 1.0
    down = _shift(draws[:, 1], height) if "crop" in operations else zeros
    right = _shift(draws[:, 2], width) if "crop" in operations else zeros
    most = math.radians(MOST_DEGREES)
    angle = (2.0 * draws[:, 3] - 1.0) * most if "rotate" in operations else zeros
    cos, sin = tf.cos(angle), tf.sin(angle)
    x0, y0 = (width - 1) / 2.0, (height - 1) / 2.0
    # (x, y) -> rotate(mirror * (x - x0) + right, y - y0 + down) + (x0, y0), as rows of a projective transformation.
    left, top = right - mirror * x0, down - y0
    return tf.stack(
        [
            *(cos * mirror, -sin, cos * left - sin * top + x0),
            *(sin * mirror, cos, sin * left + cos * top + y0),
            *(zeros, zeros),
        ],
        axis=1,
    )


def _shift(draws: "tf.Tensor", side: int) -> "tf.Tensor":
    """Return shifts in whole pixels, evenly distributed from -side/8 to side/8, for draws in [0, 1)."""
    import tensorflow as tf

    padding = max(1, side // SIDES_PER_PADDING)
    return tf.floor(draws * (2 * padding + 1)) - padding
