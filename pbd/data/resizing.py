"""Bilinear resizing of images in NumPy, equal to that of TensorFlow to the bit."""

import numpy as np


def resized_bilinearly(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return images, (n, rows, columns, channels), as (n, height, width, channels) float32.

    The result equals that of `tf.image.resize` to the bit: pixel centres lie at half integers, nothing is smoothed
    before it is made smaller, and the order of the float32 operations is the same.
    """
    pixels = images.astype(np.float32, copy=False)
    if images.shape[1:3] == (height, width):
        return pixels
    left, right, to_right = _neighbours(images.shape[2], width)
    top, bottom, to_bottom = _neighbours(images.shape[1], height)
    to_right, to_bottom = to_right[:, np.newaxis], to_bottom[:, np.newaxis, np.newaxis]
    columns = pixels[:, :, left] + (pixels[:, :, right] - pixels[:, :, left]) * to_right
    return columns[:, top] + (columns[:, bottom] - columns[:, top]) * to_bottom


def _neighbours(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each of `size` positions, the two pixels of a side between which it lies, and the second's weight."""
    source = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size) - np.float32(0.5)
    low, high = (np.clip(edge(source), 0, side - 1).astype(int) for edge in (np.floor, np.ceil))
    return low, high, source - np.floor(source)
