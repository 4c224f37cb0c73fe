"""The shape of the images in batches: that of the data, of the teacher, or of `--image-size`."""

from pbd.errors import BadInputError

Shape = tuple[int, int, int]
FreeShape = tuple[int | None, int | None, int | None]


def fit_shape(stored: FreeShape, teacher: FreeShape | None, image_size: int | None, *, resizable: bool) -> Shape:
    """Return the (height, width, channels) that batches have.

    Args:
        stored: the shape of the stored images; `None` for a dimension that differs between images or can be chosen.
        teacher: the teacher's input shape, `None` for a free dimension.
        image_size: height and width that the user asks for.
        resizable: whether images are resized for the teacher without `image_size` (files are, arrays are not).

    Raises:
        BadInputError: the images do not fit the teacher's shape, or nothing determines a size.
    """
    teacher = teacher or (None, None, None)
    size = stored[:2]
    if image_size is not None:
        size = (image_size, image_size)
    elif resizable:
        size = (teacher[0] or stored[0], teacher[1] or stored[1])
    channels = _channels(stored[2], teacher[2])
    if size[0] is None or size[1] is None:
        raise BadInputError(
            "images of different sizes need one size to be resized to. Received: none. Give --image-size."
        )
    if any(needed not in (None, side) for needed, side in zip(teacher[:2], size, strict=True)):
        resize = f"Resize the images with --image-size {teacher[0]}." if teacher[0] == teacher[1] else "Resize them."
        raise BadInputError(
            f"images must have the teacher's input shape {as_text(teacher)}. "
            f"Received: images of shape {as_text((*size, channels))}. {resize}"
        )
    return (size[0], size[1], channels)


def _channels(stored: int | None, teacher: int | None) -> int:
    """Return the channels of a batch: grayscale is repeated for a teacher of colour images."""
    if stored is None:
        channels = 3 if teacher is None else teacher
        if channels not in (1, 3):
            raise BadInputError(
                f"image files have 1 or 3 channels. Received: a teacher that takes {teacher}. "
                "Save the images in an .npz file: numpy.savez(FILE, x_train=..., y_train=...)."
            )
        return channels
    if teacher in (None, stored) or stored == 1:
        return stored if teacher is None else teacher
    raise BadInputError(
        f"images must have the teacher's channels, {teacher}. Received: images of {stored} channels. "
        "Convert the images; only grayscale is repeated to fit."
    )


def as_text(shape: FreeShape) -> str:
    """Return a shape as in messages: 32x32x1, ? for a free dimension."""
    return "x".join("?" if side is None else str(side) for side in shape)
