"""One member of an ensemble, drawn for each step, is the teacher: the same one on all workers and after a resume."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE, Collective
from pbd.compression.ensemble import LOGITS, PROBABILITIES, joined
from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset
from pbd.errors import UsageError
from pbd.learning import scanned_steps
from pbd.learning.distillation import logits_model
from pbd.learning.drawn_teacher import drawn_members, members
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.records import Progress
from pbd.run_dir.journal import Journal
from pbd.student import fine_tuning
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.validation import Validator
from tests.helpers.palette import CLASSES, SHAPE, ignore, predict, some_images
from tests.helpers.thread_collective import run_threads

layers = keras.layers
START = Metrics(0.1, 0.1, 9.0)
DRAWN = DistillationConfig(from_random_weights=True, ensemble_teacher="drawn")
FIRST_EPOCH = 3
STEPS = 6
"""Per epoch."""
LOGITS_OF_MEMBERS = np.array([[1.0, -1.0, 1.0], [3.0, 3.0, -3.0]], np.float32)
"""Each member has the same logits for all images."""
LOSSES = np.array([1.0, 9.0])
"""Mean squares of the logits: what a student of zeros loses to each member."""


def linear(seed: int, bias: Any = 0.0, scale: float = 1.0) -> keras.Model:
    """Return a network whose logits are linear in the mean colour of an image."""
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="head")(layers.GlobalAveragePooling2D()(inputs)))
    kernel = scale * np.random.default_rng(seed).normal(size=(3, CLASSES))
    model.get_layer("head").set_weights([kernel, np.zeros(CLASSES) + bias])
    return graph.flatten(model)


def constant_ensemble(mean: str) -> keras.Model:
    return joined([linear(0, logits, scale=0.0) for logits in LOGITS_OF_MEMBERS], mean, some_images())


def ensemble() -> keras.Model:
    return joined([linear(1), linear(2), linear(3)], LOGITS, some_images())


def tuned(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    collective: Collective = SINGLE,
    checkpoint: Path | None = None,
    emit: Any = ignore,
    learning_rate: float = 0.05,
    distillation: DistillationConfig = DRAWN,
) -> FineTuneState:
    config = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=learning_rate, fine_tune_keep="last")
    file = CheckpointFile(Journal(checkpoint), "fine_tuning/state.npz", collective) if checkpoint else None
    return fine_tuning.fine_tune(
        student, teacher, dataset, config, START, emit, FIRST_EPOCH, collective, file, distillation
    )


def means_of_losses(dataset: Dataset) -> np.ndarray:
    """Return the mean loss after each step of each epoch of a student of zeros, (epochs, steps)."""
    drawn = [drawn_members(2, STEPS, dataset.seed, FIRST_EPOCH + epoch) for epoch in range(2)]
    return np.cumsum(LOSSES[np.array(drawn)], axis=1) / np.arange(1, STEPS + 1)


@pytest.mark.jax
@pytest.mark.parametrize("mean", [LOGITS, PROBABILITIES])
def test_a_step_has_the_logits_of_one_member(mean: str, dataset: Dataset) -> None:
    events, expected = list[Progress](), means_of_losses(dataset)
    student = linear(0, scale=0.0)
    tuning = tuned(student, constant_ensemble(mean), dataset, emit=events.append, learning_rate=1e-7)
    assert [event.loss for event in events] == pytest.approx(expected.ravel().tolist(), rel=1e-4)
    assert [row["loss"] for row in tuning.history] == pytest.approx(expected[:, -1].tolist(), rel=1e-4)


@pytest.mark.jax
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="on other backends, these are ordinary steps")
def test_steps_that_are_compiled_together_have_a_member_each(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned_steps.devices, "has_accelerator", lambda: True)
    tuning = tuned(linear(0, scale=0.0), constant_ensemble(LOGITS), dataset, learning_rate=1e-7)
    expected = means_of_losses(dataset)[:, -1]
    assert [row["loss"] for row in tuning.history] == pytest.approx(expected.tolist(), rel=1e-4)


def test_members_differ_from_step_to_step_and_from_epoch_to_epoch() -> None:
    epochs = np.array([drawn_members(3, 200, seed=5, epoch=epoch) for epoch in range(3)])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert np.array_equal(np.unique(epochs), [0, 1, 2])
    for epoch in epochs:
        assert np.bincount(epoch) == pytest.approx([200 / 3] * 3, rel=0.3)
    assert not np.array_equal(epochs[0], drawn_members(3, 200, seed=6, epoch=0))


@pytest.mark.usefixtures("eager")
def test_several_workers_draw_the_same_member(dataset: Dataset) -> None:
    students = [linear(7) for _ in range(3)]
    alone = tuned(students[2], ensemble(), dataset)
    tunings = run_threads(2, lambda collective: tuned(students[collective.index], ensemble(), dataset, collective))
    for tuning, student in zip(tunings, students, strict=False):
        assert [row["loss"] for row in tuning.history] == pytest.approx([r["loss"] for r in alone.history], rel=1e-4)
        np.testing.assert_allclose(predict(student, some_images()), predict(students[2], some_images()), atol=1e-3)
    other = linear(7)
    tuned(other, ensemble(), dataset, distillation=dataclasses.replace(DRAWN, ensemble_teacher="mean"))
    assert np.abs(predict(other, some_images()) - predict(students[2], some_images())).max() > 0.01


@pytest.mark.usefixtures("eager")
def test_a_resumed_training_draws_the_same_members(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, validate, validated = linear(7), Validator.metrics, list[keras.Model]()
    expected = tuned(whole, ensemble(), dataset)

    def interrupted(validator: Validator, student: keras.Model) -> Metrics:
        validated.append(student)
        if len(validated) == 2:
            raise InterruptedError
        return validate(validator, student)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "metrics", interrupted)
        with pytest.raises(InterruptedError):
            tuned(linear(7), ensemble(), dataset, checkpoint=tmp_path)
    resumed = linear(7)
    assert tuned(resumed, ensemble(), dataset, checkpoint=tmp_path) == expected
    for ours, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("ending", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("mean", [LOGITS, PROBABILITIES])
def test_members_are_those_that_were_joined(mean: str, ending: str | None) -> None:
    networks = [linear(seed) for seed in (1, 2)]
    networks = [graph.flatten(keras.Model(one.inputs, layers.Activation(ending)(one.outputs[0]))) for one in networks]
    inner = joined(networks, mean, some_images())
    outer = joined([inner, networks[0]], mean, some_images())
    for pair in zip(members(outer), [inner, networks[0]], strict=True):
        found, expected = (predict(logits_model(one, some_images()), some_images()) for one in pair)
        constants = (found - expected).mean(axis=1, keepdims=True)  # of which a softmax does not depend
        np.testing.assert_allclose(found, expected + constants, atol=1e-5)


def test_other_teachers_are_refused_before_the_first_step(dataset: Dataset) -> None:
    events = list[Progress]()
    with pytest.raises(UsageError, match=r"needs an ensemble as the teacher. Received: the network 'functional"):
        tuned(linear(7), linear(1), dataset, emit=events.append)
    assert events == []
