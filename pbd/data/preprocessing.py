"""Preprocessing of pixels for the teacher: none, unit, or the `preprocess_input` of a keras.applications module."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pbd.data.shapes import Shape
from pbd.errors import BadInputError, UsageError, unknown_name


def preprocessor(name: str) -> Callable[[Any], Any]:
    """Return the function that preprocesses a float32 batch, (n, height, width, channels), in 0..255.

    The batch is a NumPy array, which may be overwritten, or a tensor of any library that Keras computes with.

    Raises:
        UsageError: the name is unknown.
    """
    if name == "none":
        return lambda images: images
    if name == "unit":
        return lambda images: images / 255.0
    modules = _application_modules()
    if name not in modules:
        raise UsageError(unknown_name("preprocessing", name, ["none", "unit", "auto", *modules]))
    return lambda images: modules[name](images, data_format="channels_last")


def check_preprocess(name: str, image_shape: Shape, pixel_max: float | None) -> None:
    """Check that the preprocessing fits the images, by calling it with a small image.

    Args:
        name: see `preprocessor`.
        image_shape: (height, width, channels) of the images.
        pixel_max: the largest value of float images; `None` if pixels lie in 0..255.

    Raises:
        UsageError: the name is unknown.
        BadInputError: the preprocessing needs other channels, or pixels in 0..255.
    """
    function = preprocessor(name)
    if name != "none" and pixel_max is not None and pixel_max <= 1.0:
        raise BadInputError(
            f"preprocessing {name!r} takes pixels in 0..255. Received: float images of at most {pixel_max:g}. "
            "Give --preprocess none, or multiply the images by 255."
        )
    blank = np.zeros((1, 2, 2, image_shape[2]), np.float32)
    try:
        fits = function(blank).shape == blank.shape
    except (ValueError, IndexError):
        fits = False
    if not fits:
        raise BadInputError(
            f"preprocessing {name!r} takes colour images. Received: images of {image_shape[2]} channels. "
            "Give --preprocess unit."
        )


def _application_modules() -> dict[str, Callable[..., Any]]:
    """Return the preprocess_input of every keras.applications module that has one, by module name."""
    import keras

    modules = {name: getattr(keras.applications, name) for name in dir(keras.applications) if name.islower()}
    return {name: module.preprocess_input for name, module in modules.items() if "preprocess_input" in dir(module)}
