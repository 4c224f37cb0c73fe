"""Fine-tuning: damaged students recover, on one worker and several; the teacher is unchanged."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest

from pbd.collective import Collective
from pbd.config import StudentConfig
from pbd.data import Dataset
from pbd.data.mixing import Mixing
from pbd.learning import ghost_batch_norm, metrics
from pbd.learning.distillation import DistillationModel
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.student import fine_tuning
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import validate
from tests.helpers.palette import damage, ignore, moved_layers, predict, snapshot, some_images
from tests.helpers.thread_collective import run_threads

eager = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("loss", ["kd_mse", "cross_entropy", "mixed"])
def test_a_damaged_student_recovers(loss: str, teacher: keras.Model, student: keras.Model, dataset: Dataset) -> None:
    start = validate(student, teacher, dataset)
    assert start.accuracy < 0.7
    events: list[Any] = []
    config = StudentConfig(fine_tune_epochs=4, fine_tune_learning_rate=0.02, fine_tune_loss=loss)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, events.append)
    assert tuning.best.accuracy > 0.9
    assert tuning.best.agreement > 0.9
    assert validate(student, teacher, dataset) == tuning.best
    assert [row["epoch"] for row in tuning.history] == [1, 2, 3, 4]
    assert tuning.history[-1]["loss"] < tuning.history[0]["loss"]
    assert {tuple(row) for row in tuning.history} == {
        ("epoch", "loss", "val_accuracy", "val_agreement", "val_kl", "learning_rate")
    }
    assert tuning.events == ()
    assert (events[-1].done, events[-1].total) == (4 * 6, 4 * 6)


def test_distillation_needs_no_labels(teacher: keras.Model, student: keras.Model, unlabelled: Dataset) -> None:
    start = validate(student, teacher, unlabelled)
    assert start.accuracy is None
    config = StudentConfig(fine_tune_epochs=3, fine_tune_learning_rate=0.02, fine_tune_loss="kd_kl")
    tuning = fine_tuning.fine_tune(student, teacher, unlabelled, config, start, ignore)
    assert start.agreement < 0.7 < 0.9 < tuning.best.agreement
    assert tuning.best.accuracy is None
    for row in tuning.history:
        assert set(row) == {"epoch", "loss", "val_agreement", "val_kl", "learning_rate"}
        assert np.isfinite(list(row.values())).all()


@eager
def test_the_teacher_sees_the_validation_images_once(
    teacher: keras.Model, student: keras.Model, two_steps: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = StudentConfig(fine_tune_epochs=3), list[keras.Model]()
    monkeypatch.setattr(metrics, "predict", lambda model, images: seen.append(model) or predict(model, images))
    fine_tuning.fine_tune(student, teacher, two_steps, config, Metrics(0.1, 0.1, 9.0), ignore)
    batches = sum(1 for _ in two_steps.batches("validation"))
    assert sum(model is teacher for model in seen) == batches
    assert sum(model is student for model in seen) == 3 * batches


@eager
def test_mixed_images_are_those_of_fine_tuning_only(
    teacher: keras.Model, student: keras.Model, two_steps: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, ways = Dataset.training_batches, list[Mixing]()
    monkeypatch.setattr(Dataset, "training_batches", lambda data, *of: ways.append(data.mixing) or read(data, *of))
    start = validate(student, teacher, two_steps)
    config = StudentConfig(
        fine_tune_epochs=2, fine_tune_learning_rate=0.02, fine_tune_loss="kd_kl", mixup=1.0, cutmix=0.5
    )
    tuning = fine_tuning.fine_tune(student, teacher, two_steps, config, start, ignore)
    assert ways == [Mixing(1.0, 0.5)]
    assert not two_steps.mixing
    assert tuning.best.kl < start.kl


@eager
def test_the_teacher_keeps_its_weights_and_stays_as_trainable_as_it_was(
    teacher: keras.Model, student: keras.Model, two_steps: Dataset
) -> None:
    teacher.get_layer("stem").trainable = False
    trainable = {layer.name: layer.trainable for layer in teacher.layers}
    assert set(trainable.values()) == {True, False}
    before = snapshot(teacher)
    config = StudentConfig(fine_tune_epochs=1, fine_tune_learning_rate=0.01, fine_tune_loss="mixed")
    fine_tuning.fine_tune(student, teacher, two_steps, config, validate(student, teacher, two_steps), ignore)
    assert moved_layers(before, teacher) == set(), "statistics included"
    assert {layer.name: layer.trainable for layer in teacher.layers} == trainable
    assert teacher.trainable
    teacher.get_layer("stem").trainable = True


@eager
def test_frozen_layers_do_not_change(teacher: keras.Model, student: keras.Model, two_steps: Dataset) -> None:
    for layer in student.layers:
        layer.trainable = layer.name in ("a", "norm")
    before = snapshot(student)
    config = StudentConfig(fine_tune_epochs=1, fine_tune_learning_rate=0.01)
    worst = Metrics(0.0, 0.0, 100.0)
    fine_tuning.fine_tune(student, teacher, two_steps, config, worst, ignore)
    assert moved_layers(before, student) == {"a", "norm"}


def test_in_bfloat16_a_student_recovers_as_a_network_of_float32(
    teacher: keras.Model, student: keras.Model, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, made = validate(student, teacher, dataset), []
    config = StudentConfig(fine_tune_epochs=4, fine_tune_learning_rate=0.02, fine_tune_loss="mixed")
    student.get_layer("norm").trainable = False
    monkeypatch.setattr(
        fine_tuning, "DistillationModel", lambda *models: made.append(models[:2]) or DistillationModel(*models)
    )
    before = snapshot(student)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore, training_precision="bfloat16")
    assert tuning.best.accuracy > 0.9 > start.accuracy
    assert validate(student, teacher, dataset) == tuning.best, "of the network in float32"
    assert {layer.compute_dtype for layer in student.layers} == {"float32"}
    assert "norm" not in moved_layers(before, student)
    for network in made[0]:
        convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
        assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
        assert network.layers[-1].compute_dtype == "float32"


@eager
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_without_trainable_weights_nothing_is_trained(
    keep_zeros: bool, teacher: keras.Model, student: keras.Model, dataset: Dataset
) -> None:
    student.trainable = False
    before, start, events = snapshot(student), Metrics(0.5, 0.5, 1.0), []
    config = StudentConfig(fine_tune_epochs=2, keep_zeros=keep_zeros)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, events.append)
    assert (tuning.best, tuning.epoch, events) == (start, 0, [])
    assert "nothing is fine-tuned" in tuning.events[0]
    assert moved_layers(before, student) == set()
    assert len(tuning.best_weights) == len(student.weights)


@eager
@pytest.mark.parametrize(("loss", "mixed"), [("kd_mse", 0.0), ("mixed", 1.0)])
def test_several_workers_fine_tune_as_one_worker_does(
    loss: str, mixed: float, dataset: Dataset, teacher: keras.Model
) -> None:
    """The student has a batch normalisation, which sees parts of the batch that no worker's share cuts."""
    large = dataclasses.replace(dataset, batch_size=2 * ghost_batch_norm.SMALLEST)
    config = StudentConfig(
        fine_tune_epochs=2, fine_tune_learning_rate=0.004, fine_tune_loss=loss, mixup=mixed, cutmix=mixed
    )
    copies = [graph.flatten(teacher) for _ in range(3)]
    for copy in copies:
        damage(copy, 0.5)
    start, damaged = validate(copies[0], teacher, large), snapshot(copies[0])
    before = predict(copies[0], some_images())
    alone = fine_tuning.fine_tune(copies[2], teacher, large, config, start, ignore)

    def work(collective: Collective) -> FineTuneState:
        return fine_tuning.fine_tune(
            copies[collective.index], teacher, large, config, start, ignore, collective=collective
        )

    for tuning, copy in zip(run_threads(2, work), copies, strict=False):
        assert [row["loss"] for row in tuning.history] == pytest.approx([r["loss"] for r in alone.history], rel=1e-3)
        assert tuning.best.accuracy == pytest.approx(alone.best.accuracy, abs=1 / 48)
        # not the weights: a bias in front of a normalisation has no gradient but rounding, which Adam follows
        np.testing.assert_allclose(predict(copy, some_images()), predict(copies[2], some_images()), atol=1e-3)
        assert np.abs(predict(copy, some_images()) - before).max() > 0.05
    assert {"norm", "logits"} <= moved_layers(damaged, copies[2])
