"""Data without labels, and data whose labels are not used: their splits, and that nothing names a class."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import load
from pbd.data.sources import load_digits
from pbd.errors import BadInputError
from tests.helpers.batches import SPLITS, assert_unlabelled, every_id, ids, labels_of, same, taken
from tests.helpers.numbered_images import NO_Y, arrays, config, own_validation

pytestmark = pytest.mark.usefixtures("few_threads")


@pytest.mark.parametrize("test", [{}, {"x_test": None}], ids=["own test split", "no test split"])
@pytest.mark.parametrize("validation", [{}, {"x_val": own_validation()["x_val"]}], ids=["no validation", "validation"])
def test_an_npz_without_labels_is_split_into_disjoint_parts(
    npz: Callable[..., Path], test: dict[str, Any], validation: dict[str, Any]
) -> None:
    path = npz(**NO_Y, **test, **validation)
    one, again, other = load(config(path), 0), load(config(path), 0), load(config(path), 1)
    assert_unlabelled(one)
    assert len(one.test) == 12
    assert len(one.validation) == (20 if validation else 5 if test else 6)
    if not validation:
        assert sorted(every_id(one)) == list(range(60 if test else 72))
    assert list(every_id(one)) == list(every_id(again)) != list(every_id(other))
    assert list(ids(one.batches("test"))) == list(ids(other.batches("test")))


def test_splits_without_labels_are_the_same_whatever_the_labels_are(npz: Callable[..., Path]) -> None:
    unlabelled = load(config(npz(**NO_Y)), 0)
    dropped = load(config(npz(), labels=False), 0)
    skewed = load(config(npz(y_train=np.arange(60) // 55), labels=False), 0)
    assert_unlabelled(dropped)
    assert list(every_id(unlabelled)) == list(every_id(dropped)) == list(every_id(skewed))
    assert list(every_id(unlabelled)) != list(every_id(load(config(npz()), 0)))


def test_splits_without_labels_are_not_stratified_but_random() -> None:
    data = load(config(labels=False, validation_fraction=0.2), 0)
    assert_unlabelled(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (1150, 288, 359)
    rows = [split.rows for split in (data.train, data.validation, data.test)]
    assert len(np.unique(np.concatenate(rows))) == 1797
    assert all(abs(np.mean(part) / 898 - 1) < 0.1 for part in rows)
    labels = load_digits().train.labels
    assert np.abs(np.bincount(labels[data.test.rows]) - 0.2 * np.bincount(labels)).max() > 2


def test_a_train_limit_without_labels_leaves_the_validation_split(npz: Callable[..., Path]) -> None:
    whole, limited = load(config(npz(**NO_Y)), 0), load(config(npz(**NO_Y), train_limit=10), 0)
    assert list(ids(limited.batches("train"))) == list(ids(whole.batches("train")))[:10]
    assert list(ids(limited.batches("validation"))) == list(ids(whole.batches("validation")))


def test_images_of_training_batches_do_not_hang_on_labels(npz: Callable[..., Path]) -> None:
    data = load(config(npz(**NO_Y), augment="paper"), 0)
    batches = taken(data.training_batches(0, 3))
    assert same(batches[data.steps_per_epoch :], taken(data.training_batches(1, 3)))
    assert same(batches, taken(pickle.loads(pickle.dumps(data)).training_batches(0, 3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"y_train": None},
        {"y_train": np.eye(3)[np.arange(60) % 3]},
        {"y_test": np.arange(5)},
        {"y_test": np.array([{}], object)},
        {"x_val": arrays()["x_test"]},
    ],
    ids=["missing", "one-hot", "too few", "pickled", "validation without labels"],
)
def test_labels_that_are_not_used_may_be_anything(npz: Callable[..., Path], changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadInputError):
        load(config(npz(**changes)), 0)
    assert_unlabelled(load(config(npz(**changes), labels=False), 0))


def test_labels_are_used_unless_told_otherwise(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    assert data.labelled
    assert data.num_classes == 3
    assert {name: set(labels) for name, labels in labels_of(data).items()} == {name: {0, 1, 2} for name in SPLITS}


def test_labels_can_be_kept_in_the_splits_of_data_without_them() -> None:
    """A teacher that is trained on labels must not see what its student is tested on without them."""
    without = load(DataConfig(labels=False), seed=3)
    kept = load(DataConfig(), seed=3, split_by_class=False)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(kept, split).rows, getattr(without, split).rows)
    assert kept.labelled
    assert not without.labelled
    assert set(kept.test.labels) == set(range(10))
