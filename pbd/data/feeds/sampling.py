"""Images sampled along affine maps, written once for NumPy and for `jax.numpy`."""

from typing import Any


def augmented(xp: Any, images: Any, maps: Any, bilinear: bool) -> Any:
    """Return images sampled along affine maps; beyond its borders, an image is repeated by reflection.

    The result is that of TensorFlow's `ImageProjectiveTransformV3` with `fill_mode="REFLECT"` (d c b a | a b c d | d c
    b a). It can be traced by `jax.jit` with `xp` and `bilinear` as static values.

    Args:
        xp: `numpy` or `jax.numpy`; `images` and `maps` are arrays of it.
        images: (n, height, width, channels), float32 or uint8.
        maps: (n, 6) float32; see `pbd.data.augmentation.affine_maps`.
        bilinear: interpolate; otherwise, the maps contain no rotation, and pixels are moved by rows and columns.

    Returns:
        (n, height, width, channels): float32 if `bilinear`, else of the type of `images`.

    Example:
        >>> maps = affine_maps("paper", len(images), 32, 32, seed=0, step=0)
        >>> augmented(np, images, maps, bilinear=interpolates("paper"))
    """
    height, width = images.shape[1:3]
    x, y = xp.arange(width, dtype=xp.float32), xp.arange(height, dtype=xp.float32)
    if bilinear:
        return _interpolated(xp, images, maps, x[None, None, :], y[None, :, None])
    columns = _nearest(xp, maps[:, 0:1] * x + maps[:, 2:3], width)
    rows = _nearest(xp, maps[:, 4:5] * y + maps[:, 5:6], height)
    image = xp.arange(images.shape[0])[:, None]
    moved = images[image, rows]
    return moved[image[..., None], xp.arange(height)[None, :, None], columns[:, None, :]]


def _interpolated(xp: Any, images: Any, maps: Any, x: Any, y: Any) -> Any:
    count, height, width, channels = images.shape
    a, b, c, d, e, f = (maps[:, index, None, None] for index in range(6))
    columns = _reflected(xp, a * x + b * y + c, width)
    rows = _reflected(xp, d * x + e * y + f, height)
    left, top = xp.floor(columns), xp.floor(rows)
    to_right, to_bottom = (columns - left)[..., None], (rows - top)[..., None]
    x0, y0 = left.astype(xp.int32), top.astype(xp.int32)
    x1, y1 = xp.minimum(x0 + 1, width - 1), xp.minimum(y0 + 1, height - 1)
    start = xp.arange(count, dtype=xp.int32)[:, None, None] * (height * width)
    pixels = images.reshape(count * height * width, channels)

    def between(row: Any) -> Any:
        at_left, at_right = (xp.take(pixels, start + row * width + column, axis=0) for column in (x0, x1))
        return (1.0 - to_right) * at_left.astype(xp.float32) + to_right * at_right.astype(xp.float32)

    return (1.0 - to_bottom) * between(y0) + to_bottom * between(y1)


def _nearest(xp: Any, positions: Any, side: int) -> Any:
    return xp.floor(_reflected(xp, positions, side) + 0.5).astype(xp.int32)


def _reflected(xp: Any, positions: Any, side: int) -> Any:
    """Return positions along a side, float32, as positions in [0, side - 1] of the image repeated by reflection."""
    # A period begins at -0.5, the edge of the first pixel: no rounding of the quotient moves a whole number beyond it.
    period = 2.0 * side
    positions = positions - period * xp.floor((positions + 0.5) / period)
    return xp.clip(xp.minimum(positions, period - 1.0 - positions), 0.0, side - 1.0)
