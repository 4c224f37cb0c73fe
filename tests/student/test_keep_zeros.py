"""Weights that are zero when fine-tuning starts stay zero: on one worker and several, rolled back and resumed."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd.collective import Collective
from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning import ghost_batch_norm, scanned_steps
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.run_dir.journal import Journal
from pbd.student import fine_tuning
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.validation import Validator
from tests.helpers.palette import damage, ignore, make_dataset, trained_teacher
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")

START = Metrics(0.1, 0.1, 9.0)
CONFIG = StudentConfig(fine_tune_epochs=3, fine_tune_learning_rate=0.01, keep_zeros=True)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The images, with two steps in each epoch."""
    return dataclasses.replace(make_dataset(), batch_size=48)


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return trained_teacher(make_dataset())


@pytest.fixture
def pruned(teacher: keras.Model) -> Callable[[], keras.Model]:
    """Return a function that returns the same copy of the teacher at each call: damaged, half of each kernel zero."""

    def copy() -> keras.Model:
        student = graph.flatten(teacher)
        damage(student, 0.3)
        for weight in kernels(student):
            size = np.abs(weight.numpy())
            weight.assign(np.where(size > np.median(size), weight.numpy(), 0))
        return student

    return copy


def kernels(model: keras.Model) -> list[keras.Variable]:
    return [weight for weight in model.trainable_variables if len(weight.shape) > 1]


def zeros(model: keras.Model) -> np.ndarray:
    return np.concatenate([(weight.numpy() == 0).ravel() for weight in kernels(model)])


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


@pytest.mark.parametrize("keep_zeros", [pytest.param(True, marks=pytest.mark.jax), False])
def test_zeros_stay_if_they_are_kept(
    keep_zeros: bool, pruned: Callable[[], keras.Model], teacher: keras.Model, dataset: Dataset
) -> None:
    student = pruned()
    before = weights(student)
    config = dataclasses.replace(CONFIG, fine_tune_epochs=2, keep_zeros=keep_zeros)
    state = fine_tuning.fine_tune(student, teacher, dataset, config, START, ignore)
    assert state.best.accuracy > 0.6
    assert np.mean(weights(student) != before) > 0.4
    assert np.array_equal(zeros(student), zeros(pruned())) == keep_zeros
    assert (np.mean(zeros(student)) > 0.4) == keep_zeros


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_zeros_of_new_layers_are_trained(
    precision: str, pruned: Callable[[], keras.Model], teacher: keras.Model, dataset: Dataset
) -> None:
    student, config = pruned(), dataclasses.replace(CONFIG, fine_tune_epochs=1)
    begin = DistillationConfig(new_layers=("a",))
    fine_tuning.fine_tune(
        student, teacher, dataset, config, START, ignore, distillation=begin, training_precision=precision
    )
    shares = {weight.path.split("/")[-2]: np.mean(weight.numpy() == 0) for weight in kernels(student)}
    assert shares.pop("a") < 0.1
    assert min(shares.values()) > 0.4


def test_several_workers_keep_the_same_zeros(
    pruned: Callable[[], keras.Model], teacher: keras.Model, dataset: Dataset
) -> None:
    large, copies = dataclasses.replace(dataset, batch_size=2 * ghost_batch_norm.SMALLEST), [pruned(), pruned()]
    config = dataclasses.replace(CONFIG, fine_tune_epochs=1)

    def work(collective: Collective) -> FineTuneState:
        student = copies[collective.index]
        return fine_tuning.fine_tune(student, teacher, large, config, START, ignore, collective=collective)

    run_threads(2, work)
    before = pruned()
    for student in copies:
        assert np.array_equal(zeros(student), zeros(before))
        assert not np.array_equal(weights(student), weights(before))


@pytest.mark.jax
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="on other backends, these are ordinary steps")
def test_steps_that_are_compiled_together_keep_zeros(
    pruned: Callable[[], keras.Model], teacher: keras.Model, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanned_steps.devices, "has_accelerator", lambda: True)
    student = pruned()
    config = dataclasses.replace(CONFIG, fine_tune_epochs=1)
    fine_tuning.fine_tune(student, teacher, dataset, config, START, ignore)
    assert np.array_equal(zeros(student), zeros(pruned()))
    assert not np.array_equal(weights(student), weights(pruned()))


class Interruption(Exception):
    """Stands for the end of the process between two epochs."""


@pytest.mark.jax
def test_rolled_back_and_resumed_the_zeros_and_the_result_are_the_same(
    pruned: Callable[[], keras.Model],
    teacher: keras.Model,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The second epoch diverges; then the process ends after the second one that counts."""
    script = [Metrics(0.5, 0.5, 2.0), Metrics(0.5, 0.5, math.nan), Metrics(0.6, 0.6, 1.0), Metrics(0.7, 0.7, 1.0)]

    def tune(measured: list[Metrics], folder: Path) -> keras.Model:
        remaining, student = iter(measured), pruned()

        def measure(*_: object) -> Metrics:
            metrics = next(remaining, None)
            if metrics is None:
                raise Interruption
            return metrics

        monkeypatch.setattr(Validator, "metrics", measure)
        checkpoint = CheckpointFile(Journal(folder), "state.npz", fine_tuning.SINGLE)
        state = fine_tuning.fine_tune(student, teacher, dataset, CONFIG, START, ignore, checkpoint=checkpoint)
        assert (state.rollbacks, state.epoch) == (1, 3)
        return student

    whole = tune(script, tmp_path / "whole")
    with pytest.raises(Interruption):
        tune(script[:3], tmp_path / "parts")
    resumed = tune(script[3:], tmp_path / "parts")
    assert np.array_equal(weights(resumed), weights(whole))
    assert np.array_equal(zeros(resumed), zeros(pruned()))
