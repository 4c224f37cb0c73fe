"""The feed of the JAX backend: the batches of the NumPy feed, made on the device from rows and affine maps."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is absent")

from pbd.data import Dataset, WorkerShare
from pbd.data.feeds import device_images
from pbd.data.feeds.jax_feed import JaxFeed
from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.data.mixing import Mixing
from tests.data.test_numpy_feed import DATA, arrays, assert_equal, in_order, training

pytestmark = pytest.mark.jax

DATASETS = {
    **{name: make for name, make in DATA.items() if name != "digits"},
    "rotated": lambda: arrays(augment="paper"),
    "mixed": lambda: replace(arrays(), mixing=Mixing(1.0, 1.0)),
    "mixed, not augmented": lambda: replace(arrays(augment="none"), mixing=Mixing(mixup=0.2)),
    "a share of a mixed batch": lambda: replace(arrays(), mixing=Mixing(1.0, 1.0)).shared(WorkerShare(1, 2), 4),
    "a third": lambda: arrays().shared(WorkerShare(2, 3)),
}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("fits", [True, False], ids=["on the device", "sent ahead"])
def test_the_batches_of_the_numpy_feed(name: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "MOST_OF_FREE_MEMORY", 0.25 if fits else 0.0)
    dataset = DATASETS[name]()
    expected, tolerance = training(NumpyFeed(), dataset), 1e-4 * 255
    assert_equal(training(JaxFeed(), dataset), expected, tolerance)
    assert_equal(in_order(JaxFeed(), dataset), in_order(NumpyFeed(), dataset), tolerance)
    assert_equal(in_order(JaxFeed(), dataset, 13), in_order(NumpyFeed(), dataset, 13), tolerance)


def test_splits_of_one_store_share_its_array_on_the_device() -> None:
    dataset = arrays()
    train, validation = (device_images.on_device(dataset, split) for split in (dataset.train, dataset.validation))
    assert train is not None
    assert validation is not None
    assert train.images is validation.images
    assert train.images.dtype == np.uint8


def test_a_batch_is_sent_before_the_one_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def batches(self: Any, dataset: Dataset, first: int, end: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(5):
            made.append(number)
            yield np.full((1,), number), np.zeros(1, np.int32)

    monkeypatch.setattr(device_images, "MOST_OF_FREE_MEMORY", 0.0)
    monkeypatch.setattr(NumpyFeed, "training_batches", batches)
    received = iter(JaxFeed().training_batches(arrays(), 0, 1))
    assert [int(images[0]) for images, _ in [next(received)]] == [0]
    assert made == [0, 1]
    assert [int(images[0]) for images, _ in received] == [1, 2, 3, 4]
