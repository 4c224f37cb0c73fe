"""Fine-tuning: losses equal their definitions, the teacher is unchanged, the best epoch wins, divergence is undone."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from scipy import special

from pbd.collective import Collective
from pbd.config import StudentConfig
from pbd.data import Dataset
from pbd.data.mixing import Mixing
from pbd.learning import distillation, ghost_batch_norm, losses
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.student import fine_tuning
from pbd.student.checkpoints import FineTuneState
from tests.helpers.palette import (
    CLASSES,
    SHAPE,
    damage,
    ignore,
    make_dataset,
    moved_layers,
    predict,
    snapshot,
    trained_teacher,
)
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")

layers = keras.layers
LOSSES = ("kd_mse", "kd_kl", "cross_entropy", "mixed")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def unlabelled() -> Dataset:
    return make_dataset(labelled=False)


@pytest.fixture(scope="module")
def teacher(dataset: Dataset) -> keras.Model:
    return trained_teacher(dataset)


@pytest.fixture
def student(teacher: keras.Model) -> keras.Model:
    """A copy of the teacher, so damaged that it guesses."""
    copy = graph.flatten(teacher)
    damage(copy, 1.5)
    return copy


def some_images(count: int = 6) -> np.ndarray:
    return np.random.default_rng(3).normal(1.0, 2.0, (count, *SHAPE)).astype("float32")


def by_hand(config: StudentConfig, labels: np.ndarray, student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the loss as the papers write it, in double precision."""
    student, teacher = student.astype("float64"), teacher.astype("float64")
    softened = [special.softmax(logits / config.temperature, axis=-1) for logits in (teacher, student)]
    divergence = config.temperature**2 * special.rel_entr(*softened).sum(axis=-1).mean()
    surprise = -np.log(special.softmax(student, axis=-1)[np.arange(len(labels)), labels]).mean()
    weight = config.distillation_weight
    return {
        "kd_mse": np.mean((student - teacher) ** 2),
        "kd_kl": divergence,
        "cross_entropy": surprise,
        "mixed": weight * divergence + (1 - weight) * surprise,
    }[config.fine_tune_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (4.0, 0.25)])
def test_losses_equal_their_definitions(loss: str, temperature: float, weight: float) -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(5, size=7).astype("int32")
    student, teacher = generator.normal(0.0, 3.0, (2, 7, 5)).astype("float32")
    config = StudentConfig(fine_tune_loss=loss, temperature=temperature, distillation_weight=weight)
    found = float(losses.make_loss(config)(labels, student, teacher))
    assert found == pytest.approx(by_hand(config, labels, student, teacher), rel=1e-5)


@pytest.mark.parametrize("loss", ["kd_mse", "kd_kl"])
def test_the_loss_is_zero_if_the_student_equals_the_teacher(loss: str) -> None:
    logits = np.random.default_rng(1).normal(0.0, 3.0, (7, 5)).astype("float32")
    measured = losses.make_loss(StudentConfig(fine_tune_loss=loss))
    assert float(measured(np.full(7, -1), logits, logits)) == pytest.approx(0.0, abs=1e-6)
    assert float(measured(np.full(7, -1), logits + np.eye(7, 5, dtype="float32"), logits)) > 0.01


def test_kd_kl_ignores_a_constant_and_kd_mse_does_not() -> None:
    logits = np.random.default_rng(1).normal(size=(7, 5)).astype("float32")
    kl, mse = (losses.make_loss(StudentConfig(fine_tune_loss=loss)) for loss in ("kd_kl", "kd_mse"))
    assert float(kl(None, logits + 3.0, logits)) == pytest.approx(0.0, abs=1e-5)
    assert float(mse(None, logits + 3.0, logits)) == pytest.approx(9.0, rel=1e-5)


HEADS: dict[str, Callable[[Any], Any]] = {
    "logits": lambda x: layers.Dense(CLASSES, name="head")(x),
    "dense": lambda x: layers.Dense(CLASSES, activation="softmax", name="head")(x),
    "softmax layer": lambda x: layers.Softmax()(layers.Dense(CLASSES, name="head")(x)),
    "activation layer": lambda x: layers.Activation("softmax")(layers.Dense(CLASSES, name="head")(x)),
}


def with_head(make: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="body")(inputs))
    return keras.Model(inputs, make(x))


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_inputs_of_the_softmax(head: str) -> None:
    images, model = some_images(), with_head(HEADS[head])
    found = predict(distillation.logits_model(graph.flatten(model), images), images)
    features = predict(keras.Model(model.inputs[0], model.get_layer("head").input), images)
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(found, features @ kernel + bias, rtol=1e-4, atol=1e-5)


def normalised(x: Any) -> Any:
    scores = keras.ops.exp(layers.Dense(CLASSES)(x))
    return scores / keras.ops.sum(scores, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "head", [normalised, lambda x: layers.Rescaling(1.0)(layers.Dense(CLASSES, activation="softmax")(x))]
)
def test_other_probabilities_get_a_logarithm(head: Callable[[Any], Any]) -> None:
    images, model = some_images(), graph.flatten(with_head(head))
    probabilities = predict(model, images)
    assert probabilities.sum(axis=-1) == pytest.approx(1.0)
    found = predict(distillation.logits_model(model, images), images)
    np.testing.assert_allclose(special.softmax(found, axis=-1), probabilities, rtol=1e-4)
    np.testing.assert_allclose(found, np.log(probabilities), rtol=1e-4, atol=1e-6)


def test_a_probability_of_zero_has_a_finite_logarithm() -> None:
    model = graph.flatten(with_head(lambda x: layers.Rescaling(1.0)(layers.Softmax()(1e4 * layers.Dense(CLASSES)(x)))))
    images = some_images()
    assert predict(model, images).min() == 0.0
    assert np.isfinite(predict(distillation.logits_model(model, images), images)).all()


def test_training_the_logits_model_trains_the_student(dataset: Dataset) -> None:
    teacher = graph.flatten(with_head(HEADS["dense"]))
    student = graph.flatten(teacher)
    damage(student, 1.0)
    before, teachers = snapshot(student), snapshot(teacher)
    start = fine_tuning.validate(student, teacher, dataset)
    config = StudentConfig(fine_tune_epochs=4, fine_tune_learning_rate=0.02)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore)
    assert moved_layers(before, student) == {"body", "head"}
    assert moved_layers(teachers, teacher) == set()
    assert tuning.best.kl < 0.5 * start.kl
    assert predict(student, some_images()).sum(axis=-1) == pytest.approx(1.0), "still probabilities"


@pytest.mark.parametrize("loss", ["kd_mse", "cross_entropy", "mixed"])
def test_a_damaged_student_recovers(loss: str, teacher: keras.Model, student: keras.Model, dataset: Dataset) -> None:
    start = fine_tuning.validate(student, teacher, dataset)
    assert start.accuracy < 0.7
    events: list[Any] = []
    config = StudentConfig(fine_tune_epochs=4, fine_tune_learning_rate=0.02, fine_tune_loss=loss)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, events.append)
    assert tuning.best.accuracy > 0.9
    assert tuning.best.agreement > 0.9
    assert fine_tuning.validate(student, teacher, dataset) == tuning.best
    assert [row["epoch"] for row in tuning.history] == [1, 2, 3, 4]
    assert tuning.history[-1]["loss"] < tuning.history[0]["loss"]
    assert {tuple(row) for row in tuning.history} == {
        ("epoch", "loss", "val_accuracy", "val_agreement", "val_kl", "learning_rate")
    }
    assert tuning.events == ()
    assert (events[-1].done, events[-1].total) == (4 * 6, 4 * 6)


@pytest.mark.parametrize("loss", ["kd_mse", "kd_kl"])
def test_distillation_needs_no_labels(
    loss: str, teacher: keras.Model, student: keras.Model, unlabelled: Dataset
) -> None:
    start = fine_tuning.validate(student, teacher, unlabelled)
    assert start.accuracy is None
    config = StudentConfig(fine_tune_epochs=3, fine_tune_learning_rate=0.02, fine_tune_loss=loss)
    tuning = fine_tuning.fine_tune(student, teacher, unlabelled, config, start, ignore)
    assert start.agreement < 0.7 < 0.9 < tuning.best.agreement
    assert tuning.best.accuracy is None
    for row in tuning.history:
        assert set(row) == {"epoch", "loss", "val_agreement", "val_kl", "learning_rate"}
        assert np.isfinite(list(row.values())).all()


def test_mixed_images_are_those_of_fine_tuning_only(
    teacher: keras.Model, student: keras.Model, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, ways = Dataset.training_batches, list[Mixing]()
    monkeypatch.setattr(Dataset, "training_batches", lambda data, *of: ways.append(data.mixing) or read(data, *of))
    start = fine_tuning.validate(student, teacher, dataset)
    config = StudentConfig(
        fine_tune_epochs=2, fine_tune_learning_rate=0.02, fine_tune_loss="kd_kl", mixup=1.0, cutmix=0.5
    )
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore)
    assert ways == [Mixing(1.0, 0.5)]
    assert not dataset.mixing
    assert tuning.best.kl < start.kl


def test_the_teacher_keeps_its_weights_and_stays_as_trainable_as_it_was(
    teacher: keras.Model, student: keras.Model, dataset: Dataset
) -> None:
    teacher.get_layer("stem").trainable = False
    trainable = {layer.name: layer.trainable for layer in teacher.layers}
    assert set(trainable.values()) == {True, False}
    before = snapshot(teacher)
    config = StudentConfig(fine_tune_epochs=1, fine_tune_learning_rate=0.01, fine_tune_loss="mixed")
    fine_tuning.fine_tune(student, teacher, dataset, config, fine_tuning.validate(student, teacher, dataset), ignore)
    assert moved_layers(before, teacher) == set(), "statistics included"
    assert {layer.name: layer.trainable for layer in teacher.layers} == trainable
    assert teacher.trainable
    teacher.get_layer("stem").trainable = True


@pytest.mark.parametrize("kind", ["a wild rate", "no number"])
def test_divergence_is_detected_undone_and_reported(
    kind: str, teacher: keras.Model, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a good student, neither can end well: what comes back is never worse than what went in."""
    monkeypatch.setattr(fine_tuning, "MAX_ROLLBACKS", 1)
    rate, told = 1e4, " ("
    if kind == "no number":
        rate, told = 1e-3, "the loss is not a finite number"
        monkeypatch.setattr(losses.logits, "kd_mse", lambda y, ours, theirs: np.nan * keras.ops.mean(ours - theirs))
    student = graph.flatten(teacher)
    damage(student, 0.3)
    start = fine_tuning.validate(student, teacher, dataset)
    assert start.accuracy > 0.75
    before = snapshot(student)
    config = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=rate)
    tuning = fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore)
    assert tuning.events[0].startswith(f"epoch 1 diverged at learning rate {rate:g}")
    assert told in tuning.events[0]
    assert tuning.events[0].endswith(f"undone, repeated at {rate / 4:g}")
    assert (tuning.best.accuracy, -tuning.best.kl) >= (start.accuracy, -start.kl)
    assert all(np.isfinite(value).all() for value in student.get_weights())
    assert fine_tuning.validate(student, teacher, dataset) == tuning.best
    if tuning.best == start:
        assert moved_layers(before, student) == set(), "statistics included"


class Script:
    """Metrics that follow a script, and the student's weights at each of them."""

    def __init__(self, *measures: tuple[float, float]) -> None:
        self._metrics = iter(Metrics(accuracy, accuracy, kl) for accuracy, kl in measures)
        self.seen: list[list[np.ndarray]] = []

    def __call__(self, student: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective) -> Metrics:
        self.seen.append(student.get_weights())
        return next(self._metrics)


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, teacher: keras.Model, student: keras.Model, dataset: Dataset
) -> Iterator[Callable[..., tuple[FineTuneState, Script]]]:
    """Return a function that tunes the student from (0.5, 1.0) under such a script."""

    def run(*measures: tuple[float, float], epochs: int, loss: str = "kd_mse") -> tuple[FineTuneState, Script]:
        script = Script(*measures)
        monkeypatch.setattr(fine_tuning, "validate", script)
        monkeypatch.setattr(fine_tuning, "standard_error", lambda score, images: 0.02)
        config = StudentConfig(fine_tune_epochs=epochs, fine_tune_learning_rate=0.008, fine_tune_loss=loss)
        return fine_tuning.fine_tune(student, teacher, dataset, config, Metrics(0.5, 0.5, 1.0), ignore), script

    return run


def is_at(student: keras.Model, weights: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(student.get_weights(), weights, strict=True))


@pytest.mark.parametrize(
    ("loss", "best"),
    [("kd_mse", 2), ("cross_entropy", 3)],
    ids=["of those near the highest score, the nearest to the teacher", "from labels alone, the highest score"],
)
def test_the_best_epoch_wins(
    loss: str, best: int, student: keras.Model, follow: Callable[..., tuple[FineTuneState, Script]]
) -> None:
    measures = [(0.6, 1.0), (0.7, 0.9), (0.69, 0.3), (0.7, 0.4), (0.65, 0.1)]
    tuning, script = follow(*measures, epochs=5, loss=loss)
    score, kl = measures[best]
    assert tuning.best == Metrics(score, score, kl)
    assert [is_at(student, weights) for weights in script.seen] == [epoch == best for epoch in range(5)]
    assert len(tuning.history) == 5


def test_small_losses_of_score_do_not_add_up(follow: Callable[..., tuple[FineTuneState, Script]]) -> None:
    tuning, _ = follow((0.69, 0.9), (0.675, 0.8), (0.66, 0.7), (0.645, 0.6), epochs=4)
    assert tuning.best == Metrics(0.675, 0.675, 0.8)


def test_the_standard_error_is_that_of_a_share_of_images() -> None:
    assert fine_tuning.standard_error(0.9, 10_000) == pytest.approx(0.003, rel=0.01)
    assert fine_tuning.standard_error(1.0, 32) > 1 / 32, "one image proves nothing"


def test_the_start_remains_if_no_epoch_is_better(
    student: keras.Model, follow: Callable[..., tuple[FineTuneState, Script]]
) -> None:
    start = student.get_weights()
    tuning, _ = follow((0.5, 1.0), (0.47, 0.1), epochs=2)
    assert tuning.best == Metrics(0.5, 0.5, 1.0)
    assert is_at(student, start)
    assert [row["val_accuracy"] for row in tuning.history] == [0.5, 0.47]


def test_a_collapsed_epoch_is_repeated_from_the_best_weights_at_a_quarter_of_the_learning_rate(
    student: keras.Model, dataset: Dataset, follow: Callable[..., tuple[FineTuneState, Script]]
) -> None:
    """Epoch 2 falls below half of the 0.8 before it, is repeated, and so is epoch 3, whose divergence has no number."""
    tuning, script = follow((0.8, 0.5), (0.39, 3.0), (0.6, 2.0), (0.8, float("nan")), (0.9, 0.2), epochs=3)
    assert [(row["epoch"], row["val_accuracy"]) for row in tuning.history] == [(1, 0.8), (2, 0.6), (3, 0.9)]
    assert [row["learning_rate"] for row in tuning.history] == pytest.approx([0.008, 0.0015, 0.0001875])
    assert len(tuning.events) == 2
    assert tuning.events[0].startswith("epoch 2 diverged at learning rate 0.006 (the accuracy fell from 0.8000 to 0.39")
    assert tuning.events[0].endswith("undone, repeated at 0.0015")
    assert tuning.events[1].startswith("epoch 3 diverged at learning rate 0.00075")
    assert tuning.best == Metrics(0.9, 0.9, 0.2)
    assert is_at(student, script.seen[-1])
    ends = [weights[0] for weights in script.seen]  # the stem's kernel; a step of Adam is about its rate
    farthest = 1.2 * dataset.steps_per_epoch * 0.002
    assert np.abs(ends[2] - ends[0]).max() < farthest, "epoch 2 began again from the end of epoch 1"
    assert np.abs(ends[1] - ends[0]).max() > farthest


def test_after_the_last_rollback_the_best_weights_remain(
    student: keras.Model, follow: Callable[..., tuple[FineTuneState, Script]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "MAX_ROLLBACKS", 2)
    collapses = [(0.1, 5.0)] * (1 + fine_tuning.MAX_ROLLBACKS)
    tuning, script = follow((0.8, 0.5), *collapses, epochs=4)
    assert len(script.seen) == 2 + fine_tuning.MAX_ROLLBACKS
    assert len(tuning.events) == 1 + fine_tuning.MAX_ROLLBACKS
    assert tuning.best == Metrics(0.8, 0.8, 0.5)
    assert is_at(student, script.seen[0])
    assert len(tuning.history) == 1


def test_frozen_layers_do_not_change(teacher: keras.Model, student: keras.Model, dataset: Dataset) -> None:
    for layer in student.layers:
        layer.trainable = layer.name in ("a", "norm")
    before = snapshot(student)
    config = StudentConfig(fine_tune_epochs=1, fine_tune_learning_rate=0.01)
    worst = Metrics(0.0, 0.0, 100.0)
    fine_tuning.fine_tune(student, teacher, dataset, config, worst, ignore)
    assert moved_layers(before, student) == {"a", "norm"}


@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_several_workers_fine_tune_as_one_worker_does(mixed: float, dataset: Dataset, teacher: keras.Model) -> None:
    """The student has a batch normalisation, which sees parts of the batch that no worker's share cuts."""
    large = dataclasses.replace(dataset, batch_size=2 * ghost_batch_norm.SMALLEST)
    config = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=0.004, mixup=mixed, cutmix=mixed)
    copies = [graph.flatten(teacher) for _ in range(3)]
    for copy in copies:
        damage(copy, 0.5)
    start, damaged = fine_tuning.validate(copies[0], teacher, large), snapshot(copies[0])
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
        assert np.abs(predict(copy, some_images()) - before).max() > 0.1
    assert {"norm", "logits"} <= moved_layers(damaged, copies[2])


def test_divergence_on_one_worker_rolls_all_workers_back(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [graph.flatten(teacher) for _ in range(2)]
    config = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=0.001, fine_tune_scope="blocks")
    large, losses = dataclasses.replace(dataset, batch_size=2 * ghost_batch_norm.SMALLEST), iter([math.nan])

    def work(collective: Collective) -> FineTuneState:
        all_reduce_sum = collective.all_reduce_sum

        def poisoned(values: np.ndarray) -> np.ndarray:
            return all_reduce_sum(
                values * next(losses, 1.0) if collective.index == 1 and values.dtype == np.float32 else values
            )

        collective.all_reduce_sum = poisoned
        return fine_tuning.fine_tune(
            copies[collective.index], teacher, large, config, Metrics(0.9, 0.9, 0.1), ignore, collective=collective
        )

    first, second = run_threads(2, work)
    assert first == second
    assert len(first.events) == 1
    assert "the loss is not a finite number" in first.events[0]
