"""Which image is in which batch: NumPy only, so that every backend and every worker sees the same batches.

Batch k of epoch e depends on (seed, e, k) and on nothing else.
"""

from dataclasses import dataclass

import numpy as np

from pbd.data.splitting import derived_seed

_ROUND_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_KEY_OF_SEEDS = 0x3EC8F720, 0x02461E29
"""With which TensorFlow turns two seeds into a key and a counter."""
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

    The images left over at the end are others in every epoch.

    Args:
        count: images in the training split.
        batch_size: at most `count`.
        seed: the run's.
        epoch: from 0.
    """
    steps = count // batch_size
    return shuffled(count, derived_seed(seed, "order"), epoch)[: steps * batch_size].reshape(steps, batch_size)


def positions_in_order(count: int, batch_size: int, share: WorkerShare) -> list[np.ndarray]:
    """Return the positions of consecutive batches, every `share.count`-th of them; the last may be smaller."""
    starts = range(share.index * batch_size, count, share.count * batch_size)
    return [np.arange(start, min(start + batch_size, count)) for start in starts]


def shuffled(count: int, first_seed: int, second_seed: int) -> np.ndarray:
    """Return a random permutation of `range(count)`, (count,) int64, that depends on the two seeds only.

    It is the one of `tf.random.experimental.stateless_shuffle(tf.range(count), seeds, alg="philox")`, so that runs on
    other backends see the batches of runs on TensorFlow: a Fisher-Yates shuffle with the numbers of Philox.
    """
    words = [word for seed in (first_seed, second_seed) for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)]
    (mixed,) = philox(np.array([words], np.uint64), _KEY_OF_SEEDS)
    counters = np.zeros((-(-count // 4), 4), np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 2:] = mixed[2:]
    draws = philox(counters, (int(mixed[0]), int(mixed[1]))).reshape(-1)[:count]
    others = (np.arange(count, dtype=np.uint64) + draws % np.arange(count, 0, -1, dtype=np.uint64)).tolist()
    order = list(range(count))
    for position, other in enumerate(others):
        order[position], order[other] = order[other], order[position]
    return np.array(order, np.int64)


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the random numbers of counters, (n, 4) of 32 bits each, as uint64.

    Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). NumPy's own Philox has
    words of 64 bits and gives other numbers.
    """
    first, second, third, fourth = counters.astype(np.uint64).T
    key_0, key_1 = key
    for _ in range(10):
        product_0, product_1 = _ROUND_MULTIPLIERS[0] * first, _ROUND_MULTIPLIERS[1] * third
        first, second = (product_1 >> _HALF) ^ second ^ np.uint64(key_0), product_1 & _LOW
        third, fourth = (product_0 >> _HALF) ^ fourth ^ np.uint64(key_1), product_0 & _LOW
        key_0, key_1 = (key_0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF, (key_1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth], axis=1)
