"""Random numbers that depend on two seeds only: those of TensorFlow's stateless functions with Philox, in NumPy."""

import numpy as np

_ROUND_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_KEY_OF_SEEDS = 0x3EC8F720, 0x02461E29
"""The key with which TensorFlow turns two seeds into a key and a counter."""
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MANTISSA, _EXPONENT_OF_ONE = np.uint32(0x7FFFFF), np.uint32(127 << 23)


def blocks(first_seed: int, second_seed: int, count: int, first: int = 0) -> np.ndarray:
    """Return the blocks [first, first + count) of the random numbers of two seeds, (count, 4) uint64, below 2**32.

    TensorFlow's `stateless_*` functions with `alg="philox"` use these numbers, block after block.
    """
    # As in TensorFlow, one block of Philox over both seeds gives the key and the upper half of the counter.
    words = [word for seed in (first_seed, second_seed) for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)]
    (mixed,) = philox(np.array([words], np.uint64), _KEY_OF_SEEDS)
    counters = np.zeros((count, 4), np.uint64)
    counters[:, 0] = np.arange(first, first + count)
    counters[:, 2:] = mixed[2:]
    return philox(counters, (int(mixed[0]), int(mixed[1])))


def uniform(first_seed: int, second_seed: int, count: int, first: int = 0) -> np.ndarray:
    """Return rows [first, first + count) of random numbers, (count, 4) float32, evenly distributed over [0, 1).

    They are those of `tf.random.stateless_uniform([first + count, 4], seeds, alg="philox")`.
    """
    words = blocks(first_seed, second_seed, count, first).astype(np.uint32)
    # The low 23 bits are the mantissa of a number in [1, 2).
    return ((words & _MANTISSA) | _EXPONENT_OF_ONE).view(np.float32) - np.float32(1.0)


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
