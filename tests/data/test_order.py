"""Which image is in which batch: NumPy alone, equal to what TensorFlow's stateless shuffle gives."""

import numpy as np
import pytest

from pbd.data.order import WorkerShare, batch_bounds, shuffled, training_positions


@pytest.mark.parametrize("count", [1, 2, 5, 17, 1437])
@pytest.mark.parametrize("seeds", [(3, 0), (123_456_789, 7), (2**32 - 1, 2)])
def test_the_shuffle_is_that_of_tensorflow(count: int, seeds: tuple[int, int]) -> None:
    import tensorflow as tf

    key = tf.constant(seeds, tf.int64)
    expected = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), key, alg="philox")
    np.testing.assert_array_equal(shuffled(count, *seeds), expected.numpy())


@pytest.mark.fast
def test_the_order_of_an_epoch_is_as_random_as_a_shuffle() -> None:
    for epoch in range(3):
        batches = training_positions(20_000, 50, seed=0, epoch=epoch)
        order = batches.ravel()
        assert np.array_equal(np.sort(order), np.arange(20_000))
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
        assert 0.85 < batches.mean(axis=1).std() / (20_000 / np.sqrt(12 * 50)) < 1.15


@pytest.mark.fast
def test_an_epoch_drops_other_images_than_the_next_and_has_full_batches_only() -> None:
    first, second = (training_positions(10, 4, seed=1, epoch=epoch) for epoch in (0, 1))
    assert first.shape == second.shape == (2, 4)
    assert len(np.unique(first)) == len(np.unique(second)) == 8
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, training_positions(10, 4, seed=1, epoch=0))


@pytest.mark.fast
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_batches_of_a_split_in_order(workers: int) -> None:
    shares = [batch_bounds(23, 5, WorkerShare(index, workers)).tolist() for index in range(workers)]
    assert sorted(bounds for share in shares for bounds in share) == [[0, 5], [5, 10], [10, 15], [15, 20], [20, 23]]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.fast
def test_a_worker_may_have_no_batch_of_a_small_split() -> None:
    assert batch_bounds(4, 5, WorkerShare(1, 2)).shape == (0, 2)
