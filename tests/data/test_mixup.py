"""Mixup: the same mixed images on every feed and for every number of workers."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import Dataset, StreamSplit, WorkerShare, load
from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.data.mixup import mixed, mixture
from pbd.data.order import WHOLE

BATCH = 30


def digits(mixup: float = 1.0, augment: str = "flip_crop", share: WorkerShare = WHOLE) -> Dataset:
    data = load(DataConfig(batch_size=BATCH, train_limit=200, augment=augment, preprocess="unit"), seed=3)
    return dataclasses.replace(data.shared(share), mixup=mixup)


def taken(feed: Any, dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(x), np.asarray(y)) for x, y in feed.training_batches(dataset, 1, 3)]


@pytest.mark.fast
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_batch_is_mixed_the_same_for_any_number_of_workers(count: int) -> None:
    whole = mixture(0.4, 16, slice(0, 16), seed=5, step=7)
    assert (whole.weights.dtype, whole.weights.min() >= 0, whole.weights.max() <= 1) == (np.float32, True, True)
    assert np.array_equal(np.sort(whole.partners), np.arange(16))
    for index in range(count):
        own_images = WorkerShare(index, count).of(16)
        share = mixture(0.4, 16, own_images, seed=5, step=7)
        np.testing.assert_array_equal(share.positions[share.own_images], np.arange(16)[own_images])
        np.testing.assert_array_equal(share.positions[share.partners], whole.positions[whole.partners][own_images])
        np.testing.assert_array_equal(share.weights, whole.weights[own_images])
        assert len(share.positions) <= min(16, 2 * (own_images.stop - own_images.start))
    for other in (mixture(0.4, 16, slice(0, 16), 5, 8), mixture(0.4, 16, slice(0, 16), 6, 7)):
        assert not np.array_equal(other.weights, whole.weights)
        assert not np.array_equal(other.partners, whole.partners)


@pytest.mark.fast
def test_weights_are_even_for_1_and_extreme_for_small_alphas() -> None:
    even, extreme = (mixture(alpha, 4000, slice(0, 4000), 0, 0).weights for alpha in (1.0, 0.1))
    assert abs(even.mean() - 0.5) < 0.02
    assert abs(even.var() - 1 / 12) < 0.005
    assert (np.abs(extreme - 0.5) > 0.4).mean() > 0.7


@pytest.mark.fast
def test_mixed_images_are_sums_of_two_augmented_images() -> None:
    plain, result = taken(NumpyFeed(), digits(mixup=0.0)), taken(NumpyFeed(), digits())
    first_step = digits().steps_per_epoch
    for step, ((images, labels), (mixed_images, mixed_labels)) in enumerate(zip(plain, result, strict=True)):
        drawn = mixture(1.0, BATCH, slice(0, BATCH), seed=3, step=first_step + step)
        np.testing.assert_array_equal(mixed_labels, labels)
        expected = mixed(images, images[drawn.partners], drawn.weights)
        np.testing.assert_allclose(mixed_images, expected, atol=1e-6)
        assert not np.allclose(images, mixed_images, atol=0.1)


@pytest.mark.fast
@pytest.mark.parametrize("augment", ["none", "paper"])
def test_workers_read_shares_of_a_mixed_batch(augment: str) -> None:
    whole = taken(NumpyFeed(), digits(augment=augment))
    shares = [taken(NumpyFeed(), digits(augment=augment, share=WorkerShare(index, 3))) for index in range(3)]
    for step, (images, labels) in enumerate(whole):
        np.testing.assert_allclose(np.concatenate([share[step][0] for share in shares]), images, atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([share[step][1] for share in shares]), labels)


@pytest.mark.parametrize("augment", ["none", "flip_crop", "paper"])
@pytest.mark.parametrize("share", [WHOLE, WorkerShare(1, 3)])
def test_batches_are_mixed_as_by_the_feed_with_tensorflow(augment: str, share: WorkerShare) -> None:
    from pbd.data.feeds.tf_data import TfDataFeed

    data = digits(augment=augment, share=share)
    for (images, labels), (other, other_labels) in zip(
        taken(NumpyFeed(), data), taken(TfDataFeed(), data), strict=True
    ):
        np.testing.assert_allclose(images, other, atol=1e-3)
        np.testing.assert_array_equal(labels, other_labels)


def test_batches_of_a_stream_are_mixed() -> None:
    import tensorflow as tf

    from pbd.data.feeds.tf_data import TfDataFeed

    rows = {"image": np.random.default_rng(0).uniform(0, 255, (41, 2, 2, 3)).astype(np.float32), "label": np.arange(41)}
    split = StreamSplit(
        stream=lambda: tf.data.Dataset.from_tensor_slices(rows),
        size=41,
        decode=lambda row: (row["image"], tf.cast(row["label"], tf.int32)),
    )
    data = Dataset(
        "stream", split, split, split, 41, (2, 2, 3), batch_size=8, augment="flip", preprocess="none", seed=5
    )
    plain, whole = taken(TfDataFeed(), data), taken(TfDataFeed(), dataclasses.replace(data, mixup=1.0))
    shares = [
        taken(TfDataFeed(), dataclasses.replace(data.shared(WorkerShare(index, 2)), mixup=1.0)) for index in range(2)
    ]
    for step, (images, labels) in enumerate(whole):
        drawn = mixture(1.0, 8, slice(0, 8), seed=5, step=data.steps_per_epoch + step)
        original = plain[step][0]
        np.testing.assert_allclose(images, mixed(original, original[drawn.partners], drawn.weights), atol=1e-3)
        np.testing.assert_allclose(np.concatenate([share[step][0] for share in shares]), images, atol=1e-3)
        np.testing.assert_array_equal(np.concatenate([share[step][1] for share in shares]), labels)


def test_jax_mixes_as_numpy_does() -> None:
    jax = pytest.importorskip("jax")
    images = np.random.default_rng(0).uniform(0, 255, (8, 4, 5, 3)).astype(np.float32)
    drawn = mixture(1.0, 8, slice(0, 8), 0, 0)
    expected = mixed(images, images[drawn.partners], drawn.weights)
    result = jax.jit(mixed)(images, images[drawn.partners], drawn.weights)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
