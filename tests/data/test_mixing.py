"""Mixup and CutMix: the same mixed images on every feed and for every number of workers."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import Dataset, StreamSplit, WorkerShare, load
from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.data.mixing import UNMIXED, Mixing, mixed, mixture
from pbd.data.order import WHOLE

BATCH = 30
SIZE = (8, 6)
BOTH = Mixing(mixup=1.0, cutmix=1.0)
WAYS = [Mixing(mixup=0.4), Mixing(cutmix=1.0), BOTH]


def digits(mixing: Mixing = BOTH, augment: str = "flip_crop", share: WorkerShare = WHOLE) -> Dataset:
    data = load(DataConfig(batch_size=BATCH, train_limit=200, augment=augment, preprocess="unit"), seed=3)
    return dataclasses.replace(data.shared(share), mixing=mixing)


def taken(feed: Any, dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(x), np.asarray(y)) for x, y in feed.training_batches(dataset, 1, 3)]


@pytest.mark.fast
@pytest.mark.parametrize("mixing", WAYS, ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_batch_is_mixed_the_same_for_any_number_of_workers(mixing: Mixing, count: int) -> None:
    whole = mixture(mixing, 16, SIZE, slice(0, 16), seed=5, step=7)
    assert (whole.weights.dtype, whole.weights.min() >= 0, whole.weights.max() <= 1) == (np.float32, True, True)
    assert np.array_equal(np.sort(whole.partners), np.arange(16))
    for index in range(count):
        own_images = WorkerShare(index, count).of(16)
        share = mixture(mixing, 16, SIZE, own_images, seed=5, step=7)
        np.testing.assert_array_equal(share.positions[share.own_images], np.arange(16)[own_images])
        np.testing.assert_array_equal(share.positions[share.partners], whole.positions[whole.partners][own_images])
        np.testing.assert_array_equal(share.weights, whole.weights[own_images])
        np.testing.assert_array_equal(share.boxes, whole.boxes[own_images])
        np.testing.assert_array_equal(share.shares, whole.shares[own_images])
        assert len(share.positions) <= min(16, 2 * (own_images.stop - own_images.start))
    for other in (mixture(mixing, 16, SIZE, slice(0, 16), 5, 8), mixture(mixing, 16, SIZE, slice(0, 16), 6, 7)):
        assert not np.array_equal(other.weights, whole.weights) or not np.array_equal(other.boxes, whole.boxes)
        assert not np.array_equal(other.partners, whole.partners)


@pytest.mark.fast
def test_weights_are_even_for_1_and_extreme_for_small_alphas() -> None:
    even, extreme = (mixture(Mixing(alpha), 4000, SIZE, slice(0, 4000), 0, 0).weights for alpha in (1.0, 0.1))
    assert abs(even.mean() - 0.5) < 0.02
    assert abs(even.var() - 1 / 12) < 0.005
    assert (np.abs(extreme - 0.5) > 0.4).mean() > 0.7


@pytest.mark.fast
def test_boxes_have_the_shape_of_the_image_and_their_centres_are_anywhere_in_it() -> None:
    height, width = 60, 30
    drawn = mixture(Mixing(cutmix=1.0), 4000, (height, width), slice(0, 4000), 0, 0)
    top, left, bottom, right = drawn.boxes.T
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, height, width)
    assert np.all(top <= bottom)
    assert np.all(left <= right)
    inside = (top > 0) & (left > 0) & (bottom < height) & (right < width)  # not cut off at an edge
    assert np.all(np.abs((bottom - top) - 2 * (right - left))[inside] <= 3)
    centres = np.stack([top + bottom, left + right])[:, inside] / 2
    np.testing.assert_allclose(centres.mean(axis=1), [height / 2, width / 2], rtol=0.05)
    share = (bottom - top) * (right - left) / (height * width)
    # Of an even share s, boxes keep s (1 - sqrt(s)/4)^2 on average; by integration over s: 0.5 - 0.2 + 1/48.
    np.testing.assert_allclose(share.mean(), 0.5 - 0.2 + 1 / 48, atol=0.02)
    assert np.all(drawn.weights == 1.0)
    np.testing.assert_allclose(drawn.shares, 1.0 - share, atol=1e-6)


@pytest.mark.fast
def test_with_both_each_image_is_mixed_in_one_way() -> None:
    drawn = mixture(BOTH, 1000, (32, 32), slice(0, 1000), 0, 0)
    has_box, is_sum = (drawn.boxes[:, 2:] > drawn.boxes[:, :2]).all(axis=1), drawn.weights < 1.0
    assert not np.any(has_box & is_sum)
    assert abs(is_sum.mean() - 0.5) < 0.05
    assert (has_box | is_sum).mean() > 0.95  # the smallest boxes are empty
    sums = mixture(Mixing(1.0), 1000, (32, 32), slice(0, 1000), 0, 0)
    np.testing.assert_array_equal(drawn.weights[is_sum], sums.weights[is_sum])
    np.testing.assert_array_equal(drawn.shares[is_sum], sums.shares[is_sum])
    np.testing.assert_array_equal(drawn.partners, sums.partners)


@pytest.mark.fast
def test_a_box_shows_the_partner() -> None:
    images, partners = np.zeros((2, 4, 5, 3), np.float32), np.ones((2, 4, 5, 3), np.float32)
    boxes = np.array([[1, 2, 3, 5], [2, 2, 2, 4]], np.int32)
    result = mixed(np, images, partners, np.array([1.0, 0.25], np.float32), boxes)
    expected = np.zeros((4, 5))
    expected[1:3, 2:5] = 1.0
    np.testing.assert_array_equal(result[0], np.repeat(expected[..., None], 3, axis=-1))
    np.testing.assert_array_equal(result[1], 0.75)


@pytest.mark.fast
def test_two_augmented_images_are_mixed() -> None:
    plain, result = taken(NumpyFeed(), digits(UNMIXED)), taken(NumpyFeed(), digits())
    first_step = digits().steps_per_epoch
    for step, ((images, labels), (mixed_images, mixed_labels)) in enumerate(zip(plain, result, strict=True)):
        drawn = digits().mixture(first_step + step)
        np.testing.assert_array_equal(mixed_labels, np.stack([labels, labels[drawn.partners], drawn.shares], axis=1))
        expected = mixed(np, images, images[drawn.partners], drawn.weights, drawn.boxes)
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
    mixing = BOTH
    plain, whole = taken(TfDataFeed(), data), taken(TfDataFeed(), dataclasses.replace(data, mixing=mixing))
    shares = [
        taken(TfDataFeed(), dataclasses.replace(data.shared(WorkerShare(index, 2)), mixing=mixing))
        for index in range(2)
    ]
    for step, (images, labels) in enumerate(whole):
        drawn = dataclasses.replace(data, mixing=mixing).mixture(data.steps_per_epoch + step)
        original = plain[step][0]
        expected = mixed(np, original, original[drawn.partners], drawn.weights, drawn.boxes)
        np.testing.assert_allclose(images, expected, atol=1e-3)
        own_labels = plain[step][1]
        np.testing.assert_array_equal(labels, np.stack([own_labels, own_labels[drawn.partners], drawn.shares], axis=1))
        np.testing.assert_allclose(np.concatenate([share[step][0] for share in shares]), images, atol=1e-3)
        np.testing.assert_array_equal(np.concatenate([share[step][1] for share in shares]), labels)


def test_jax_mixes_as_numpy_does() -> None:
    jax = pytest.importorskip("jax")
    images = np.random.default_rng(0).uniform(0, 255, (8, 4, 5, 3)).astype(np.float32)
    drawn = mixture(BOTH, 8, (4, 5), slice(0, 8), 0, 0)
    expected = mixed(np, images, images[drawn.partners], drawn.weights, drawn.boxes)
    on_jax = jax.jit(functools.partial(mixed, jax.numpy))
    result = on_jax(images, images[drawn.partners], drawn.weights, drawn.boxes)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
