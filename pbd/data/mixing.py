"""Mixup and CutMix: every training image is mixed with another one of its batch.

Mixup takes a weighted sum of both (arXiv:1710.09412), CutMix pastes a box of the other one (arXiv:1905.04899). The
teacher sees the mixed image too (Beyer et al. 2021, arXiv:2106.05237); a loss on labels takes those of both images.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pbd.data.order import shuffled
from pbd.data.splitting import derived_seed


@dataclass(frozen=True)
class Mixing:
    """How training images are mixed; false if they are not."""

    mixup: float = 0.0
    """Weights are drawn from Beta(mixup, mixup); 1 draws them evenly from [0, 1]. 0: no mixup."""
    cutmix: float = 0.0
    """The share of an image that is kept is drawn from Beta(cutmix, cutmix). 0: no CutMix. With mixup as well, each
    image is mixed in one of the two ways, with equal chances."""

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)


UNMIXED = Mixing()


class Mixture(NamedTuple):
    """How a worker's share of a batch is mixed; arrays, or tensors in a feed."""

    positions: Any
    """Positions in the whole batch of the images that the worker reads, (m,) int64, ascending: its own and partners."""
    own_images: Any
    """Positions of its own images among those that it reads, (n,) int64."""
    partners: Any
    """Positions of the partners of its own images among those that it reads, (n,) int64."""
    weights: Any
    """Weights of its own images, (n,) float32 in [0, 1]; the partners get the rest."""
    boxes: Any
    """Boxes that show the partner alone, (n, 4) int32: first row, first column, end row, end column; may be empty."""
    shares: Any
    """Shares of its own images in the mixed ones, by weight and area, (n,) float32 in [0, 1]."""


def mixture(
    mixing: Mixing, batch_size: int, image_size: tuple[int, int], own_images: slice, seed: int, step: int
) -> Mixture:
    """Return how a worker's share of a batch is mixed, drawn at random; a batch is mixed the same for all workers.

    Each image has a weight and a box of its own, and a partner, by a permutation of the batch.

    Args:
        mixing: what is drawn.
        batch_size: images of the whole batch.
        image_size: height and width, in pixels.
        own_images: positions in the batch of this worker's images.
        seed: the seed of the run.
        step: number of the batch.
    """
    partners = shuffled(batch_size, derived_seed(seed, "mixup"), step)[own_images]
    weights, boxes = _weights(mixing.mixup, batch_size, seed, step), np.zeros((batch_size, 4), np.int32)
    if mixing.cutmix:
        generator = np.random.default_rng([derived_seed(seed, "cutmix"), step])
        cut = generator.random(batch_size) < (0.5 if mixing.mixup else 1.0)
        weights[cut], boxes[cut] = 1.0, _boxes(mixing.cutmix, batch_size, image_size, generator)[cut]
    heights, widths = (boxes[:, 2:] - boxes[:, :2]).T
    shares = weights * np.float32(1.0 - heights * widths / np.prod(image_size))
    own_positions = np.arange(batch_size)[own_images]
    positions = np.union1d(own_positions, partners)
    own_index, partner_index = (np.searchsorted(positions, position) for position in (own_positions, partners))
    return Mixture(positions, own_index, partner_index, *(each[own_images] for each in (weights, boxes, shares)))


def _weights(alpha: float, count: int, seed: int, step: int) -> np.ndarray:
    if not alpha:
        return np.ones(count, np.float32)
    return np.random.default_rng([derived_seed(seed, "mixup"), step]).beta(alpha, alpha, count).astype(np.float32)


def _boxes(alpha: float, count: int, image_size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Return boxes around random pixels, cut off at the edges of the image, (count, 4) int32."""
    size = np.array(image_size)
    sides = size * np.sqrt(1.0 - generator.beta(alpha, alpha, (count, 1)))
    centres = generator.integers(size, size=(count, 2))
    corners = [np.clip(centres + sides * half, 0, size) for half in (-0.5, 0.5)]
    return np.concatenate(corners, axis=1).astype(np.int32)


def mixed(xp: Any, images: Any, partners: Any, weights: Any, boxes: Any) -> Any:
    """Return mixed images, (n, height, width, channels) float32.

    Args:
        xp: `numpy`, `jax.numpy` or `tensorflow`; the other arguments are arrays or tensors of it.
        images: (n, height, width, channels) float32; height and width are static.
        partners: the partners of the images, of the same shape.
        weights: the weights of the images, (n,) float32; the partners get the rest.
        boxes: the boxes that show the partners alone, (n, 4) int32; see `Mixture`.
    """
    height, width = images.shape[1:3]
    rows, columns = np.arange(height, dtype=np.int32), np.arange(width, dtype=np.int32)
    in_rows = (boxes[:, 0, None] <= rows) & (boxes[:, 2, None] > rows)
    in_columns = (boxes[:, 1, None] <= columns) & (boxes[:, 3, None] > columns)
    in_box = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    weights = weights[:, None, None, None]
    return xp.where(in_box, partners, weights * images + (1.0 - weights) * partners)


def mixed_labels(labels: np.ndarray, partners: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the labels of mixed images, (n, 3) float32: the image's own, the partner's, and the share of its own.

    Args:
        labels: the labels of the images, (n,) integers.
        partners: likewise.
        shares: the shares of the images, (n,) float32; see `Mixture`.
    """
    return np.stack([labels, partners, shares], axis=1).astype(np.float32)
