"""Splits: disjoint, stratified, and the same test split for every seed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.data import load
from tests.helpers.batches import every_id, ids, labels_of
from tests.helpers.numbered_images import config, own_validation

pytestmark = pytest.mark.usefixtures("few_threads")


def test_digits_are_32_by_32_and_keep_one_test_split_for_every_seed() -> None:
    one, other = load(config(), 0), load(config(), 1)
    assert one.image_shape == (32, 32, 1)
    assert one.num_classes == 10
    assert one.train.images.array.dtype == np.uint8
    assert one.train.images.array.max() == 255
    assert len(one.test) == 359
    assert np.array_equal(one.test.rows, other.test.rows)
    assert not np.array_equal(one.validation.rows, other.validation.rows)


def test_splits_are_disjoint_and_complete() -> None:
    data = load(config(), 3)
    rows = [split.rows for split in (data.train, data.validation, data.test)]
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows)) == 1797


def test_the_validation_split_is_stratified() -> None:
    data = load(config(validation_fraction=0.2), 0)
    pool = np.bincount(data.train.labels) + np.bincount(data.validation.labels)
    assert np.all(np.abs(np.bincount(data.validation.labels) - 0.2 * pool) <= 1)


def test_a_split_seed_leaves_the_splits_and_not_the_order_to_the_seed() -> None:
    first, second, other = (load(config(split_seed=5), 0), load(config(split_seed=5), 1), load(config(), 1))
    for split in ("train", "validation"):
        assert np.array_equal(getattr(first, split).rows, getattr(second, split).rows)
        assert not np.array_equal(getattr(first, split).rows, getattr(other, split).rows)
    labels = [next(iter(data.training_batches(0, 1)))[1] for data in (first, second)]
    assert not np.array_equal(*labels)


def test_a_train_limit_leaves_the_validation_split_and_is_balanced() -> None:
    whole, limited = load(config(), 0), load(config(train_limit=100), 0)
    assert np.array_equal(whole.validation.rows, limited.validation.rows)
    assert len(limited.train) == 100
    assert np.all(np.abs(np.bincount(limited.train.labels) - 10) <= 1)


def test_a_negative_and_a_large_seed_are_seeds_too() -> None:
    assert not np.array_equal(load(config(), -1).train.rows, load(config(), 2**40).train.rows)


@pytest.mark.parametrize("by_class", [True, False])
def test_half_of_the_test_images_validates_the_same_half_for_every_seed(
    by_class: bool, npz: Callable[..., Path]
) -> None:
    one, other = (load(config(str(npz()), validation_from="test"), seed, split_by_class=by_class) for seed in (0, 1))
    assert sorted([*one.validation.rows, *one.test.rows]) == list(range(12))
    assert (len(one.train), len(one.validation), len(one.test), one.split_off) == (60, 6, 6, ())
    assert np.array_equal(one.test.rows, other.test.rows)
    assert np.array_equal(one.test.labels, one.test.rows % 3)
    if by_class:
        assert np.array_equal(np.bincount(one.validation.labels), [2, 2, 2])


def test_a_validation_split_comes_before_the_test_images(npz: Callable[..., Path]) -> None:
    data = load(config(str(npz(**own_validation())), validation_from="test"), 0)
    assert (len(data.validation), len(data.test)) == (20, 12)


def test_the_data_know_which_splits_were_split_off(npz: Callable[..., Path]) -> None:
    assert load(config(), 0).split_off == ("validation", "test")
    assert load(config(validation_from="test"), 0).split_off == ("validation", "test")
    assert load(config(str(npz())), 0).split_off == ("validation",)
    assert load(config(str(npz(**own_validation()))), 0).split_off == ()


def test_an_npz_with_its_own_validation_split_keeps_it(npz: Callable[..., Path]) -> None:
    data = load(config(npz(**own_validation())), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 12)
    assert sorted(labels_of(data)["validation"]) == sorted(number % 3 for number in range(20))


def test_an_npz_without_a_test_split_gives_some_of_its_training_images(npz: Callable[..., Path]) -> None:
    path = npz(x_test=None, y_test=None)
    one, other = load(config(path), 0), load(config(path), 1)
    assert (len(one.train), len(one.validation), len(one.test)) == (43, 5, 12)
    assert list(ids(one.batches("test"))) == list(ids(other.batches("test")))
    assert sorted(every_id(one)) == list(range(60))
    assert list(np.bincount(one.test.labels)) == [4, 4, 4]
