"""Mixup: every training image is replaced by a weighted sum of two images of its batch (arXiv:1710.09412).

The teacher sees the mixed image too, so no labels are mixed (Beyer et al. 2021, arXiv:2106.05237).
"""

from typing import Any, NamedTuple

import numpy as np

from pbd.data.order import shuffled
from pbd.data.splitting import derived_seed


class Mixture(NamedTuple):
    """How a worker's share of a batch is mixed; arrays, or tensors in a feed."""

    positions: Any
    """Positions in the whole batch of the images that the worker reads, (m,) int64, ascending: its own and partners."""
    own_images: Any
    """Where its own images are among those that it reads, (n,) int64."""
    partners: Any
    """Where the partners of its own images are among those that it reads, (n,) int64."""
    weights: Any
    """Weights of its own images, (n,) float32 in [0, 1]; the partners get the rest."""


def mixture(alpha: float, batch_size: int, own_images: slice, seed: int, step: int) -> Mixture:
    """Return how a worker's share of a batch is mixed, drawn at random; a batch is mixed the same for all workers.

    Each image has a weight of its own, drawn from Beta(alpha, alpha), and a partner, by a permutation of the batch.

    Args:
        alpha: positive; 1 draws weights evenly from [0, 1].
        batch_size: images of the whole batch.
        own_images: positions in the batch of this worker's images.
        seed: of the run.
        step: number of the batch.
    """
    drawn_from = derived_seed(seed, "mixup")
    partners = shuffled(batch_size, drawn_from, step)[own_images]
    weights = np.random.default_rng([drawn_from, step]).beta(alpha, alpha, batch_size)[own_images]
    own_positions = np.arange(batch_size)[own_images]
    positions = np.union1d(own_positions, partners)
    own_index, partner_index = (np.searchsorted(positions, position) for position in (own_positions, partners))
    return Mixture(positions, own_index, partner_index, weights.astype(np.float32))


def mixed(images: Any, partners: Any, weights: Any) -> Any:
    """Return mixed images, (n, height, width, channels) float32.

    Args:
        images: (n, height, width, channels) float32, arrays or tensors of NumPy, JAX or TensorFlow, as all arguments.
        partners: of the same shape.
        weights: of the images, (n,) float32; the partners get the rest.
    """
    weights = weights[:, None, None, None]
    return weights * images + (1.0 - weights) * partners
