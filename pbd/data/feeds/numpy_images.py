"""Images as NumPy arrays: read, decoded by Pillow, and resized.

The pixels are those of `tf_images`, except for JPEG, which TensorFlow decodes with a faster and less exact transform:
the values differ by 1 of 255 on average, and by 4 at most, up to quality 75; at quality 95, by 2 on average, and by 14
at most (Pillow 13, TensorFlow 2.21). BMP files with a palette get its colours; TensorFlow takes its indices for grey
values. A GIF whose first frame is smaller than its screen has the size of the screen; in TensorFlow, that of the frame.
"""

import io
from collections.abc import Callable

import numpy as np

from pbd.data.images import ArrayImages, FileImages, encoded_image
from pbd.data.resizing import resized_bilinearly
from pbd.data.shapes import Shape
from pbd.errors import BadInputError, EnvironmentMismatchError

FORMATS = ("JPEG", "PNG", "BMP", "GIF")
GRAY_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)
"""The weights of red, green and blue, as in `tf.image.rgb_to_grayscale`."""


class DamagedImageError(Exception):
    """An encoded image cannot be decoded."""


def reader(images: ArrayImages | FileImages) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from rows of a store to images, (len(rows), *image_shape), uint8 or float32."""
    shape = images.read_shape
    if isinstance(images, FileImages):
        read = _read_file if images.is_checked else _read_file_or_black
        return lambda rows: np.stack([read(images, images.paths[row]) for row in rows])

    array = images.array

    def read_rows(rows: np.ndarray) -> np.ndarray:
        batch = array[rows]
        if batch.shape[1:3] != shape[:2]:
            batch = resized_bilinearly(batch, *shape[:2])
        return np.repeat(batch, shape[2], axis=-1) if batch.shape[3] != shape[2] else batch

    return read_rows


def _read_file(images: FileImages, path: str) -> np.ndarray:
    try:
        return decoded(encoded_image(path), images.read_shape)
    except DamagedImageError as error:
        raise BadInputError(
            f"an image file must be a whole JPEG, PNG, BMP or GIF. Received: {path!r}, which could be decoded before "
            "training and is now damaged. Save it again, and resume the run."
        ) from error


def _read_file_or_black(images: FileImages, path: str) -> np.ndarray:
    """Return the image in a file that was not checked; if it is damaged, a black image, the same in every process."""
    try:
        return decoded(encoded_image(path), images.read_shape)
    except DamagedImageError:
        images.damaged.add(path)
        return np.zeros(images.read_shape, np.float32)


def can_be_decoded(path: str) -> bool:
    """Return whether a file is an image that Pillow decodes.

    Raises:
        MissingInputError: the file cannot be read.
    """
    try:
        _pixels(encoded_image(path))
    except DamagedImageError:
        return False
    return True


def decoded(encoded: bytes, shape: Shape) -> np.ndarray:
    """Return one encoded image as `shape`, float32 in 0..255, resized bilinearly without regard to its proportions.

    Raises:
        DamagedImageError: it is no whole image of one of `FORMATS`.
    """
    pixels = _pixels(encoded)
    if shape[2] == 1:
        # As in TensorFlow, which scales to [0, 1] and back and then rounds down.
        gray = (pixels.astype(np.float32) * np.float32(1 / 255)) @ GRAY_WEIGHTS
        pixels = (gray * np.float32(255.5)).astype(np.uint8)[..., np.newaxis]
    return resized_bilinearly(pixels[np.newaxis], *shape[:2])[0]


def _pixels(encoded: bytes) -> np.ndarray:
    """Return one encoded image as (height, width, 3) uint8, without its transparency; of an animation, the first frame.

    Raises:
        DamagedImageError: it is no whole image of one of `FORMATS`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentMismatchError(
            "image files need Pillow without TensorFlow. Received: it is not installed. Install it: pip install pillow"
        ) from error

    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            if image.mode.startswith("I"):  # 16 bits of grey
                gray = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(gray[..., np.newaxis], 3, axis=-1)
            transparent = image.info.pop("transparency", None)  # `convert` would warn of it
            pixels = np.asarray(image.convert("RGB"))
            if image.format == "GIF" and image.mode == "P" and transparent is not None:
                return pixels * (np.asarray(image) != transparent)[..., np.newaxis]  # black, as in TensorFlow
            return pixels
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise DamagedImageError from error
