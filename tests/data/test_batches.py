"""Batches: each epoch a permutation that depends on the seed alone, in every process and resumed run."""

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pbd
from pbd.config import DataConfig
from pbd.data import load
from pbd.errors import UsageError
from tests.helpers.batches import ids, same, taken
from tests.helpers.cluster import PATIENCE_S
from tests.helpers.numbered_images import config

pytestmark = pytest.mark.usefixtures("few_threads")

ROOT = Path(__file__).resolve().parents[2]


def test_every_epoch_is_a_permutation_of_its_own(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), batch_size=9), 0)
    assert len(data.train) == 54
    first, second = (ids(data.training_batches(epoch, epoch + 1)) for epoch in (0, 1))
    train = set(ids(data.batches("train")))
    assert set(first) == set(second) == train
    assert len(first) == len(second) == 54
    assert not np.array_equal(first, second)
    assert not train & (set(ids(data.batches("validation"))) | set(ids(data.batches("test"))))


def test_batches_are_full_and_counted(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), batch_size=16), 0)
    batches = taken(data.training_batches(0, 3))
    assert len(batches) == 3 * data.steps_per_epoch == 9
    assert {x.shape for x, _ in batches} == {(16, 6, 6, 3)}
    assert batches[0][0].dtype == np.float32
    assert batches[0][1].dtype == np.int32
    assert data.training_batches(0, 1).element_spec[0].shape == (16, 6, 6, 3)
    assert taken(data.training_batches(3, 3)) == []


def test_a_resumed_run_sees_the_same_batches(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), augment="paper"), 0)
    assert same(taken(data.training_batches(0, 4))[2 * data.steps_per_epoch :], taken(data.training_batches(2, 4)))


def test_two_loads_agree_whatever_the_global_seed_and_two_seeds_do_not(npz: Callable[..., Path]) -> None:
    import tensorflow as tf

    path = npz()
    tf.random.set_seed(5)
    one = taken(load(config(path, augment="paper"), 0).training_batches(0, 2))
    tf.random.set_seed(6)
    assert same(one, taken(load(config(path, augment="paper"), 0).training_batches(0, 2)))
    assert not same(one, taken(load(config(path, augment="paper"), 1).training_batches(0, 2)))


def test_another_process_agrees(npz: Callable[..., Path]) -> None:
    code = (
        "import hashlib, sys; from pbd.config import DataConfig; from pbd.data import load\n"
        "from pbd.system import backend; backend.dedicate_process(); backend.load()\n"
        "data = load(DataConfig(dataset=sys.argv[1], batch_size=8, augment='paper'), 7)\n"
        "print(hashlib.sha256(b''.join(x.numpy().tobytes() for x, _ in data.training_batches(1, 3))).hexdigest())"
    )
    path = npz()
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True)
    batches = taken(load(DataConfig(dataset=str(path), batch_size=8, augment="paper"), 7).training_batches(1, 3))
    assert len(batches) > 2
    assert done.stdout.strip() == hashlib.sha256(b"".join(images.tobytes() for images, _ in batches)).hexdigest()


def test_batches_of_a_split_keep_order_drop_nothing_and_can_be_limited(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    order = list(ids(data.batches("test")))
    assert sorted(order) == list(range(60, 72))
    assert list(ids(data.batches("test", limit=10))) == order[:10]
    assert list(ids(load(config(npz()), 1).batches("test"))) == order, "whatever the seed of the run"
    with pytest.raises(UsageError, match="validation"):
        data.batches("validatoin")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_first_images_of_a_split_that_is_sorted_by_class_are_of_all_classes(split: str, tmp_path: Path) -> None:
    images, labels = np.zeros((40, 4, 4, 1), np.uint8), np.repeat(np.arange(4), 10)
    parts = dict.fromkeys(("train", "validation", "test"), (images, labels))
    with (tmp_path / "data.npz").open("wb") as stream:
        pbd.Data(**parts).save(stream)
    ((_, found),) = taken(load(config(tmp_path / "data.npz"), 0).batches(split, limit=8))
    assert np.bincount(found).tolist() == [2, 2, 2, 2]


def test_a_dataset_survives_pickling(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    before = taken(data.training_batches(0, 1))
    assert same(before, taken(pickle.loads(pickle.dumps(data)).training_batches(0, 1)))
