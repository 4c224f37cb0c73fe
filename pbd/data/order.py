"""The order of images in batches: NumPy only, so that every backend and every worker sees the same batches.

Batch k of epoch e depends on (seed, e, k) and on nothing else. Feeds turn the positions into pixels.
"""

from dataclasses import dataclass

import numpy as np

from pbd.data.random_numbers import blocks
from pbd.data.splitting import derived_seed


@dataclass(frozen=True)
class WorkerShare:
    """The share of one of several workers, as equal as possible."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return which of `size` consecutive items belong to this worker."""
        return slice(self.index * size // self.count, (self.index + 1) * size // self.count)


WHOLE = WorkerShare()


def training_positions(count: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the positions of the images of each full training batch of an epoch, (steps, batch_size) int64.

    The images that do not fill a last batch are left out; in every epoch, these are different images.

    Args:
        count: images in the training split.
        batch_size: images per batch, at most `count`.
        seed: the seed of the run.
        epoch: the number of the epoch, from 0.
    """
    steps = count // batch_size
    return shuffled(count, derived_seed(seed, "order"), epoch)[: steps * batch_size].reshape(steps, batch_size)


def batch_bounds(count: int, batch_size: int, share: WorkerShare) -> np.ndarray:
    """Return first and end positions of this worker's batches of a split read in order, (batches, 2) int64.

    Worker i of n reads the batches i, i + n, i + 2n, ...; the last batch of the split may be smaller.
    """
    starts = np.arange(share.index * batch_size, count, share.count * batch_size, dtype=np.int64)
    return np.stack([starts, np.minimum(starts + batch_size, count)], axis=1)


def shuffled(count: int, first_seed: int, second_seed: int) -> np.ndarray:
    """Return a random permutation of `range(count)`, (count,) int64, that depends on the two seeds only.

    The permutation is that of `tf.random.experimental.stateless_shuffle(tf.range(count), seeds, alg="philox")`, so that
    runs on other backends see the batches of runs on TensorFlow: a Fisher-Yates shuffle with the numbers of Philox.
    """
    draws = blocks(first_seed, second_seed, -(-count // 4)).reshape(-1)[:count]
    # Position i is swapped with a position in [i, count), a loop over a list: NumPy has no vectorised form of it.
    others = (np.arange(count, dtype=np.uint64) + draws % np.arange(count, 0, -1, dtype=np.uint64)).tolist()
    order = list(range(count))
    for position, other in enumerate(others):
        order[position], order[other] = order[other], order[position]
    return np.array(order, np.int64)
