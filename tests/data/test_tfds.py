"""Streams of tensorflow-datasets: splits, resumed streams, sets without labels, and errors."""

import dataclasses
import sys

import numpy as np
import pytest

from pbd.data import load
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError
from tests.helpers.batches import assert_unlabelled, every_id, ids, labels_of, same, taken
from tests.helpers.fake_tfds import fake_tfds
from tests.helpers.numbered_images import config, one_line

pytestmark = pytest.mark.usefixtures("few_threads")


def test_tfds_streams_resume_and_stay_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50, "validation": 9}))
    settings = config("tfds:imagenette/small", batch_size=15, validation_fraction=0.1)
    data = load(settings, 0, (8, 8, 3))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (45, 5, 9, 3)
    assert data.split_off == ("validation",)
    train, validation = ids(data.batches("train")), ids(data.batches("validation"))
    assert sorted([*train, *validation]) == list(range(50))
    epochs = taken(data.training_batches(0, 3))
    assert epochs[0][0].shape == (15, 8, 8, 3)
    tf.random.set_seed(99)
    assert same(epochs[6:], taken(load(settings, 0, (8, 8, 3)).training_batches(2, 3)))
    assert not same(epochs[:3], epochs[3:6])
    assert not same(epochs[:3], taken(load(settings, 1, (8, 8, 3)).training_batches(0, 1)))
    assert sorted(ids(data.training_batches(0, 1))) == sorted(train)
    assert len(ids(data.batches("train", limit=7))) == 7
    limited = load(dataclasses.replace(settings, train_limit=20), 0, (8, 8, 3))
    assert len(limited.train) == len(ids(limited.batches("train"))) == 20


def test_half_of_a_tfds_test_split_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50, "test": 9}))
    data = load(config("tfds:imagenette/small", batch_size=15, validation_from="test"), 0, (8, 8, 3))
    assert (len(data.train), len(data.validation), len(data.test), data.split_off) == (50, 4, 5, ())
    assert not set(ids(data.batches("validation"))) & set(ids(data.batches("test")))


def test_a_tfds_set_without_labels_has_the_splits_of_one_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 50, "test": 9}
    settings = config("tfds:imagenette/small", batch_size=15)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(sizes))
    labelled = load(settings, 0, (8, 8, 3))
    assert labelled.labelled
    assert np.array_equal(labels_of(labelled)["train"], ids(labelled.batches("train")) % 3)
    dropped = load(dataclasses.replace(settings, labels=False), 0, (8, 8, 3))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(sizes, objects=object()))
    for data in (dropped, load(settings, 0, (8, 8, 3))):
        assert_unlabelled(data)
        assert list(every_id(data)) == list(every_id(labelled))


def test_a_tfds_label_that_is_no_class_is_refused_or_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50, "test": 9}, label=object()))
    one_line(BadInputError, "--no-labels", dataset="tfds:imagenette/small", image_shape=(8, 8, 3))
    assert_unlabelled(load(config("tfds:imagenette/small", labels=False), 0, (8, 8, 3)))


def test_tfds_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    one_line(EnvironmentMismatchError, "pip install tensorflow-datasets", dataset="tfds:mnist")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50}))
    one_line(MissingInputError, "not found", dataset="tfds:nothing")
    one_line(BadInputError, "train", dataset="tfds:imagenette/small", image_shape=(8, 8, 3))
    one_line(BadInputError, "--image-size", dataset="tfds:imagenette/small")
