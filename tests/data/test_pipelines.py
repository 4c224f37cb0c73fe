"""Parts of batches: what workers that share a batch read is, put together, what one alone would read."""

import hashlib
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import Dataset, StreamSplit, WorkerShare, load
from pbd.errors import UsageError
from tests.helpers.batches import taken


def stream_of(images: int) -> StreamSplit:
    import tensorflow as tf

    rows = {"image": np.arange(images * 12, dtype=np.float32).reshape(images, 2, 2, 3), "label": np.arange(images)}
    return StreamSplit(
        stream=lambda: tf.data.Dataset.from_tensor_slices(rows),
        size=images,
        decode=lambda row: (row["image"], tf.cast(row["label"], tf.int32)),
    )


def streamed() -> Dataset:
    splits = [stream_of(count) for count in (41, 19, 19)]
    return Dataset("stream", *splits, 41, (2, 2, 3), batch_size=8, augment="flip_crop", preprocess="none", seed=5)


@pytest.fixture(params=["digits", "stream"])
def data(request: pytest.FixtureRequest) -> Dataset:
    if request.param == "stream":
        return streamed()
    return load(DataConfig(batch_size=30, train_limit=200, augment="paper"), seed=3)


def test_a_part_of_so_many_things_is_as_equal_as_can_be() -> None:
    for size in (7, 8, 64):
        for count in (1, 2, 3, 5):
            parts = [WorkerShare(index, count).of(size) for index in range(count)]
            assert [at for part in parts for at in range(size)[part]] == list(range(size))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_training_batches_make_up_the_batches(data: Dataset, count: int) -> None:
    whole = taken(data.training_batches(1, 3))
    parts = [taken(data.shared(WorkerShare(index, count)).training_batches(1, 3)) for index in range(count)]
    assert len(whole) == 2 * data.steps_per_epoch
    for step, (images, labels) in enumerate(whole):
        np.testing.assert_allclose(np.concatenate([part[step][0] for part in parts]), images, atol=1e-3)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), labels)


@pytest.mark.parametrize("limit", [None, 10])
def test_the_parts_of_a_split_hold_each_batch_once(data: Dataset, limit: int | None) -> None:
    whole = taken(data.batches("validation", limit))
    parts = [taken(data.shared(WorkerShare(index, 2)).batches("validation", limit)) for index in range(2)]
    assert [len(part) for part in parts] == [(len(whole) + 1) // 2, len(whole) // 2]
    for number, (images, labels) in enumerate(whole):
        np.testing.assert_array_equal(parts[number % 2][number // 2][0], images)
        np.testing.assert_array_equal(parts[number % 2][number // 2][1], labels)


def test_more_workers_than_images_of_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="9 workers, --batch-size 8"):
        streamed().shared(WorkerShare(0, 9))


def checksum(batches: Any) -> str:
    found = hashlib.sha256()
    for images, labels in taken(batches):
        found.update(f"{images.dtype}{images.shape}{labels.dtype}{labels.shape}".encode())
        found.update(images.tobytes() + labels.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("augment", "whole", "second_of_three"),
    [
        ("none", "23614244419e18dd", "48f6e105bfc7698c"),
        ("flip_crop", "8f0d8af21faa854a", "1b4007aec805aca6"),
    ],
)
def test_training_batches_are_those_of_version_0_1(augment: str, whole: str, second_of_three: str) -> None:
    """A run that is resumed with a later version goes on with the same batches; rotated pixels differ by processor."""
    data = load(DataConfig(batch_size=48, augment=augment, train_limit=700), seed=11)
    assert checksum(data.training_batches(1, 3))[:16] == whole
    assert checksum(data.shared(WorkerShare(1, 3)).training_batches(1, 3))[:16] == second_of_three


def test_batches_in_order_are_those_of_version_0_1() -> None:
    data = load(DataConfig(batch_size=48, labels=False, preprocess="unit"), seed=-5)
    assert checksum(data.batches("train"))[:16] == "7cc20d272bb296dc"
    assert checksum(data.batches("test", 100))[:16] == "65b6ae7009d80970"
    assert checksum(data.shared(WorkerShare(1, 2)).batches("validation"))[:16] == "a9167d89285ad255"
    assert data.digest()[:16] == "e201eaf99155bdad"
