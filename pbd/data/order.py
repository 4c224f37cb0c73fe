"""Which image is in which batch: NumPy only, so that every backend and every worker sees the same batches.

Batch k of epoch e depends on (seed, e, k) and on nothing else. Feeds turn the positions into pixels.
"""

from dataclasses import dataclass

import numpy as np

from pbd.data.splitting import derived_seed

_ROUND_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_KEY_OF_SEEDS = 0x3EC8F720, 0x02461E29
"""The key with which TensorFlow turns two seeds into a key and a counter."""
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


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
        seed: of the run.
        epoch: from 0.
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
    # As in TensorFlow, one block of Philox over both seeds gives the key and the upper half of the counter.
    words = [word for seed in (first_seed, second_seed) for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)]
    (mixed,) = philox(np.array([words], np.uint64), _KEY_OF_SEEDS)
    counters = np.zeros((-(-count // 4), 4), np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 2:] = mixed[2:]
    draws = philox(counters, (int(mixed[0]), int(mixed[1]))).reshape(-1)[:count]
    # Position i is swapped with a position in [i, count), a loop over a list: NumPy has no vectorised form of it.
    others = (np.arange(count, dtype=np.uint64) + draws % np.arange(count, 0, -1, dtype=np.uint64)).tolist()
    order = list(range(count))
    for position, other in enumerate(others):
        order[position], order[other] = order[other], order[position]
    return np.array(order, np.int64)


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return four random numbers of 32 bits for each counter, (n, 4) uint64.

    This is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). NumPy's own Philox
    has words of 64 bits and gives other numbers.

    Args:
        counters: (n, 4), each entry below 2**32.
        key: two numbers below 2**32.
    """
    first, second, third, fourth = counters.astype(np.uint64).T
    key_0, key_1 = key
    for _ in range(10):
        product_0, product_1 = _ROUND_MULTIPLIERS[0] * first, _ROUND_MULTIPLIERS[1] * third
        first, second = (product_1 >> _HALF) ^ second ^ np.uint64(key_0), product_1 & _LOW
        third, fourth = (product_0 >> _HALF) ^ fourth ^ np.uint64(key_1), product_0 & _LOW
        key_0, key_1 = (key_0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF, (key_1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth], axis=1)
