"""`pbd.Data`: what it takes from Python, what it refuses, and that arrays reach worker processes unchanged."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import pbd
from pbd.data import load, materialise
from pbd.errors import BadInputError, UsageError

LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(1).integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
TEST = IMAGES[:12][::-1], LABELS[:12]


class Batches(keras.utils.PyDataset):
    """A `PyDataset` of batches of 16; `scale` multiplies the pixels."""

    def __init__(self, scale: float = 1.0, labels: bool = True) -> None:
        super().__init__()
        self._scale, self._labels = scale, labels

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        rows = slice(16 * index, 16 * index + 16)
        images = IMAGES[rows].astype("float64") * self._scale
        return (images, LABELS[rows], np.ones(len(images))) if self._labels else images


def dataset(data: pbd.Data, seed: int = 3) -> Any:
    return load(data.config, seed, raw=data.raw_splits(data.labels))


def same_splits(one: Any, other: Any) -> bool:
    return one.digest() == other.digest()


PAIRS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (IMAGES, LABELS),
    "lists": lambda: (IMAGES.tolist(), LABELS.tolist()),
    "labels of shape (n, 1)": lambda: (IMAGES, LABELS[:, np.newaxis].astype(np.int16)),
    "integers of 64 bits": lambda: (IMAGES.astype(np.int64), [np.int64(label) for label in LABELS]),
    "tensors": lambda: (tf.constant(IMAGES), tf.constant(LABELS)),
    "batches of tf.data": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(7),
    "images of tf.data": lambda: tf.data.Dataset.from_tensor_slices((IMAGES.astype("float32"), LABELS)),
    "a generator of tf.data": lambda: tf.data.Dataset.from_generator(
        lambda: zip(IMAGES, LABELS, strict=True),
        output_signature=(tf.TensorSpec((6, 6, 3), tf.uint8), tf.TensorSpec((), tf.int64)),
    ),
    "PyDataset": Batches,
}


@pytest.mark.parametrize("kind", PAIRS)
def test_every_kind_of_split_gives_the_same_data(kind: str) -> None:
    expected = dataset(pbd.Data(train=(IMAGES, LABELS), test=TEST, batch_size=8))
    data = dataset(pbd.Data(train=PAIRS[kind](), test=TEST, batch_size=8))
    assert data.train.images.array.dtype == np.uint8
    assert same_splits(data, expected)
    assert data.name == "arrays"


@pytest.mark.parametrize(
    "split",
    [IMAGES, IMAGES.tolist(), (IMAGES, None), (IMAGES,), Batches(labels=False), Batches],
    ids=["array", "list", "no labels", "one part", "PyDataset", "labels that are not used"],
)
def test_images_without_labels(split: Any) -> None:
    made = isinstance(split, type)
    data = dataset(pbd.Data(train=split() if made else split, batch_size=8, labels=not made))
    assert not data.labelled
    assert same_splits(data, dataset(pbd.Data(train=IMAGES, batch_size=8)))


GREY = IMAGES[..., 0]
BATCHES: dict[str, Callable[[], Any]] = {
    "no labels": lambda: tf.data.Dataset.from_tensor_slices(GREY).batch(16),
    "labels of shape (n, 1)": lambda: tf.data.Dataset.from_tensor_slices((GREY, LABELS[:, np.newaxis])).batch(16),
    "booleans": lambda: tf.data.Dataset.from_tensor_slices((GREY, LABELS == 1)).batch(16),
    "whole floats": lambda: tf.data.Dataset.from_tensor_slices((GREY, LABELS * 1.0)).batch(16),
    "one size": lambda: tf.data.Dataset.from_tensor_slices((GREY, LABELS * 1.0)).batch(20, drop_remainder=True),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_grey_images(kind: str) -> None:
    assert repr(pbd.Data(train=BATCHES[kind](), batch_size=8)) == "Data(train=(60, 6, 6, 1))"


def test_missing_splits_are_those_of_the_same_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x_train=IMAGES, y_train=LABELS)
    settings: dict[str, Any] = {"batch_size": 8, "validation_fraction": 0.2}
    archive = pbd.Data.load(tmp_path / "images.npz", **settings)
    assert archive.raw_splits(labels=True) is None
    data = dataset(pbd.Data(train=(IMAGES, LABELS), **settings))
    assert same_splits(data, load(archive.config, 3))
    assert not same_splits(data, load(archive.config, 4))


@pytest.mark.parametrize("labels", [True, False])
def test_saved_arrays_are_loaded_as_they_were(tmp_path: Path, labels: bool) -> None:
    """The way by which arrays reach worker processes."""
    data = pbd.Data(train=(IMAGES / 255.0, LABELS), validation=TEST, batch_size=8, augment="paper", labels=labels)
    with (tmp_path / "data.npz").open("wb") as stream:
        data.save(stream)
    settings = pickle.loads(pickle.dumps(pbd.RunConfig(data=data.config).replace(dataset=tmp_path / "data.npz").data))
    assert same_splits(load(settings, 3), dataset(data))
    for one, other in zip(load(settings, 3).training_batches(1, 2), dataset(data).training_batches(1, 2), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_floats_stay_floats_unless_all_are_whole_numbers() -> None:
    assert dataset(pbd.Data(train=Batches(scale=1 / 255), batch_size=8)).train.images.array.dtype == np.float32
    assert materialise.compact(np.array([0.0, 255.0])).dtype == np.uint8
    for values in ([0.0, 256.0], [-1.0], [0.5], [np.nan], [np.inf]):
        assert materialise.compact(np.array(values)).dtype == np.float64


def test_settings_are_those_of_the_run() -> None:
    data = pbd.Data(train=IMAGES, batch_size=8, augment="flip", train_limit=20)
    assert (data.config.dataset, data.config.batch_size, data.config.augment, data.config.train_limit) == (
        *("arrays", 8, "flip"),
        20,
    )
    assert pbd.Data.load("digits", preprocess="unit").config == pbd.RunConfig.of(preprocess="unit").data
    assert repr(data) == "Data(train=(60, 6, 6, 3))"
    assert repr(pbd.Data.load("digits")) == "Data(source='digits')"


def cropped(image: tf.Tensor) -> tf.Tensor:
    """Return an image whose height depends on its first pixel."""
    return image[: 1 + tf.cast(image[0, 0, 0] > 100, tf.int32)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a path": (lambda: "images.npz", "Use pbd.Data.load"),
    "an object": (object, "Received: object"),
    "a generator": (lambda: (image for image in IMAGES), "Received: generator"),
    "a list of two": (lambda: [IMAGES, LABELS], r"Give a tuple \(images, labels\)"),
    "four parts": (lambda: (IMAGES, LABELS, LABELS, LABELS), "Received: 4 parts"),
    "one-hot": (lambda: (IMAGES, np.eye(3)[LABELS]), r"labels.argmax\(1\)"),
    "float labels": (lambda: (IMAGES, LABELS + 0.5), "must be integers"),
    "too few labels": (lambda: (IMAGES, LABELS[:-1]), "59 labels, 60 images"),
    "NaN": (lambda: np.full((60, 6, 6, 3), np.nan), "NaN"),
    "too large for float32": (lambda: np.full((60, 6, 6, 3), 1e300), "NaN or infinity"),
    "dicts": (lambda: tf.data.Dataset.from_tensor_slices({"image": IMAGES}), "Received: a dict"),
    "endless": (lambda: tf.data.Dataset.from_tensor_slices(IMAGES).repeat(), r"Remove .repeat\(\)"),
    "empty": (lambda: tf.data.Dataset.from_tensor_slices(IMAGES).take(0), "Received: none"),
    "one-hot, as many classes as rows": (
        lambda: tf.data.Dataset.from_tensor_slices((IMAGES, np.eye(6, dtype=int)[LABELS])),
        r"labels.argmax\(1\)",
    ),
    "batches or images": (
        lambda: tf.data.Dataset.from_tensor_slices(IMAGES[..., 0]).batch(16, drop_remainder=True),
        r"\(16, 6, 6\) without labels",
    ),
    "several sizes": (lambda: tf.data.Dataset.from_tensor_slices(IMAGES).map(cropped), "must have one size"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_splits_are_refused_in_one_line(kind: str) -> None:
    split, message = REFUSED[kind]
    with pytest.raises(BadInputError, match=message) as caught:
        pbd.Data(train=split(), batch_size=8)
    assert "\n" not in str(caught.value)
    assert "Received" in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((IMAGES, LABELS), IMAGES, "Received: test without"),
        (IMAGES, TEST, "Received: train without"),
        ((IMAGES, LABELS), (IMAGES, LABELS + 1), "0 to 2"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(train: Any, test: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        pbd.Data(train=train, test=test)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Received: nothing"),
        ({"train": IMAGES, "source": "digits"}, "Received: train, source"),
        ({"test": IMAGES, "source": "digits"}, "Received: test, source"),
        ({"train": IMAGES, "batch_size": 0}, "batch_size must be at least 1"),
        ({"train": IMAGES, "augment": "flop"}, "flip"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pbd.Data(**settings)


@pytest.mark.parametrize(
    "split",
    [Batches, lambda: tf.data.Dataset.from_generator(lambda: IMAGES, output_signature=tf.TensorSpec((6, 6, 3)))],
    ids=["known number of batches", "unknown number"],
)
def test_images_that_do_not_fit_in_memory_are_refused_with_their_size(
    split: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialise.memory, "free_host_memory", lambda: 2 * IMAGES.nbytes)
    pbd.Data(train=(IMAGES, LABELS))  # arrays are in memory already
    monkeypatch.setattr(materialise.memory, "free_host_memory", lambda: 2 * IMAGES.nbytes - 1)
    with pytest.raises(BadInputError, match=r"train must fit in memory.*Received: 0\.0 GB"):
        pbd.Data(train=split())


def test_a_saved_archive_can_be_written_to_any_stream() -> None:
    stream = io.BytesIO()
    pbd.Data(train=(IMAGES, LABELS), test=TEST, batch_size=8).save(stream)
    stream.seek(0)
    with np.load(stream) as archive:
        assert sorted(archive.files) == ["x_test", "x_train", "y_test", "y_train"]
