"""Stratified splits: an order in which every prefix has the classes in their proportions, split in two."""

import zlib

import numpy as np

NO_LABEL = -1
"""The label in a batch of an image without a label: no class has this number."""
TEST_FRACTION = 0.2
"""Share of the images that becomes the test split if the data set has none."""
TEST_SEED = 20121203
"""Seed of that test split: a constant, so that runs with different seeds are tested on the same images."""


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed in [0, 2**32) for one use of randomness, independent of the seeds for other purposes.

    `pbd.blocks.derive_seed` does the same for the weights of blocks, with another hash. They stay two functions: one
    function in place of both would change either the batches or the first weights of every earlier run.
    """
    entropy = [seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode())]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of the rows, (n,) int64, in which every prefix is balanced like the whole.

    Rows that all have one label, such as `NO_LABEL`, come in a plain random order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, shuffled, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    # Image r of a class with n images gets the key (r + 1/2) / n: sorting by it spreads every class evenly.
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort((rank + 0.5) / counts[shuffled], kind="stable")]


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, pool: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows in two parts, each with the classes in their proportions.

    Args:
        labels: (n,) class numbers of all rows, or `NO_LABEL` for all.
        fraction: share of the pool that goes to the first part: at least one row, unless it is 0.
        seed: the seed of the random choice.
        pool: the rows to split; all rows by default.

    Returns:
        Two disjoint arrays of rows, int64, each in an order whose every prefix is balanced too.
    """
    pool = np.arange(len(labels)) if pool is None else np.sort(pool)
    order = pool[stratified_order(labels[pool], derived_seed(seed, "split"))]
    taken = max(1, round(fraction * len(order))) if fraction else 0
    return order[:taken], order[taken:]
