"""Random rotation, horizontal flip and crop of images, as affine maps drawn from a key: NumPy only.

Every feed moves pixels by these maps, so images are augmented in the same way on every backend.
"""

import math

import numpy as np

from pbd.data.random_numbers import uniform

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
"""The operations of each of `pbd.config.AUGMENTATIONS`."""


def interpolates(name: str) -> bool:
    """Return whether an augmentation needs bilinear interpolation; the others move pixels without changing values."""
    return "rotate" in OPERATIONS[name]


def affine_maps(name: str, count: int, height: int, width: int, seed: int, step: int, first: int = 0) -> np.ndarray:
    """Return the random maps of the images [first, first + count) of a batch, (count, 6) float32.

    A map (a, b, c, d, e, f) takes the pixel of the output in column x and row y from column a * x + b * y + c and row
    d * x + e * y + f of the input. Rotation, crop (padded by reflection) and flip form one map, so each image is
    interpolated once.

    Args:
        name: one of `pbd.config.AUGMENTATIONS`.
        count: number of images.
        height: the height of the images.
        width: the width of the images.
        seed: determines, with `step`, the random numbers of the whole batch.
        step: number of the batch.
        first: position of the first of these images in the whole batch.

    Example:
        >>> affine_maps("none", 1, 32, 32, seed=0, step=0)
        array([[1., 0., 0., 0., 1., 0.]], dtype=float32)
    """
    operations = OPERATIONS[name]
    draws = uniform(seed, step, count, first)
    zeros = np.zeros(count, np.float32)
    mirror = np.where(draws[:, 0] < 0.5, np.float32(-1.0), np.float32(1.0)) if "flip" in operations else zeros + 1.0
    down = _shift(draws[:, 1], height) if "crop" in operations else zeros
    right = _shift(draws[:, 2], width) if "crop" in operations else zeros
    angle = (2.0 * draws[:, 3] - 1.0) * math.radians(MOST_DEGREES) if "rotate" in operations else zeros
    # In double precision, so that the last bit of the result does not depend on the processor.
    cos, sin = (function(angle.astype(np.float64)).astype(np.float32) for function in (np.cos, np.sin))
    x0, y0 = (width - 1) / 2.0, (height - 1) / 2.0
    # (x, y) -> rotate(mirror * (x - x0) + right, y - y0 + down) + (x0, y0)
    left, top = right - mirror * x0, down - y0
    columns = [cos * mirror, -sin, cos * left - sin * top + x0, sin * mirror, cos, sin * left + cos * top + y0]
    return np.stack(columns, axis=1, dtype=np.float32)


def _shift(draws: np.ndarray, side: int) -> np.ndarray:
    """Return shifts in whole pixels, evenly distributed from -side/8 to side/8, for draws in [0, 1)."""
    padding = max(1, side // SIDES_PER_PADDING)
    return np.floor(draws * (2 * padding + 1)) - padding
