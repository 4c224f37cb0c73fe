"""The best epoch of fine-tuning wins, and divergence is undone."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest

from pbd.collective import Collective
from pbd.config import StudentConfig
from pbd.data import Dataset
from pbd.learning import ghost_batch_norm, losses, teacher_table
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.student import epoch_quality, fine_tuning
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import Validator, validate
from tests.helpers.palette import damage, ignore, moved_layers, snapshot
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("kind", ["a wild rate", "no number"])
def test_divergence_is_detected_undone_and_reported(
    kind: str, teacher: keras.Model, two_steps: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a good student, neither can end well: what comes back is never worse than what went in."""
    monkeypatch.setattr(fine_tuning, "MAX_ROLLBACKS", 1)
    rate, told = 1e4, " ("
    if kind == "no number":
        rate, told = 1e-3, "the loss is not a finite number"
        monkeypatch.setattr(losses.logits, "kd_mse", lambda y, ours, theirs: np.nan * keras.ops.mean(ours - theirs))
    student = graph.flatten(teacher)
    damage(student, 0.3)
    start = validate(student, teacher, two_steps)
    assert start.accuracy > 0.75
    before = snapshot(student)
    config = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=rate)
    tuning = fine_tuning.fine_tune(student, teacher, two_steps, config, start, ignore)
    assert tuning.events[0].startswith(f"epoch 1 diverged at learning rate {rate:g}")
    assert told in tuning.events[0]
    assert tuning.events[0].endswith(f"undone, repeated at {rate / 4:g}")
    assert (tuning.best.accuracy, -tuning.best.kl) >= (start.accuracy, -start.kl)
    assert all(np.isfinite(value).all() for value in student.get_weights())
    assert validate(student, teacher, two_steps) == tuning.best
    if tuning.best == start:
        assert moved_layers(before, student) == set(), "statistics included"


class Script:
    """Metrics that follow a script, and the student's weights at each of them."""

    def __init__(self, *measures: tuple[float, float]) -> None:
        self._metrics = iter(Metrics(accuracy, accuracy, kl) for accuracy, kl in measures)
        self.seen: list[list[np.ndarray]] = []

    def __call__(self, student: keras.Model) -> Metrics:
        self.seen.append(student.get_weights())
        return next(self._metrics)


@pytest.fixture
def one_step(two_steps: Dataset) -> Dataset:
    """The images, with one step in each epoch."""
    return dataclasses.replace(two_steps, batch_size=96)


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, teacher: keras.Model, student: keras.Model, one_step: Dataset
) -> Iterator[Callable[..., tuple[FineTuneState, Script]]]:
    """Return a function that tunes the student from (0.5, 1.0) under such a script."""

    def run(
        *measures: tuple[float, float], epochs: int, loss: str = "kd_mse", keep: str = "best"
    ) -> tuple[FineTuneState, Script]:
        script = Script(*measures)
        monkeypatch.setattr(Validator, "metrics", script)
        monkeypatch.setattr(fine_tuning, "standard_error", lambda score, images: 0.02)
        config = StudentConfig(
            fine_tune_epochs=epochs, fine_tune_learning_rate=0.008, fine_tune_loss=loss, fine_tune_keep=keep
        )
        return fine_tuning.fine_tune(student, teacher, one_step, config, Metrics(0.5, 0.5, 1.0), ignore), script

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


def test_the_last_epoch_is_kept_on_request_unless_it_diverges(
    student: keras.Model, follow: Callable[..., tuple[FineTuneState, Script]]
) -> None:
    tuning, script = follow((0.8, 0.1), (0.7, 2.0), (0.9, float("nan")), (0.72, 1.5), epochs=3, keep="last")
    assert tuning.best == Metrics(0.72, 0.72, 1.5)
    assert tuning.rollbacks == 1
    assert is_at(student, script.seen[-1])


def test_small_losses_of_score_do_not_add_up(follow: Callable[..., tuple[FineTuneState, Script]]) -> None:
    tuning, _ = follow((0.69, 0.9), (0.675, 0.8), (0.66, 0.7), (0.645, 0.6), epochs=4)
    assert tuning.best == Metrics(0.675, 0.675, 0.8)


def test_the_standard_error_is_that_of_a_share_of_images() -> None:
    assert epoch_quality.standard_error(0.9, 10_000) == pytest.approx(0.003, rel=0.01)
    assert epoch_quality.standard_error(1.0, 32) > 1 / 32, "one image proves nothing"


def test_the_start_remains_if_no_epoch_is_better(
    student: keras.Model, follow: Callable[..., tuple[FineTuneState, Script]]
) -> None:
    start = student.get_weights()
    tuning, _ = follow((0.5, 1.0), (0.47, 0.1), epochs=2)
    assert tuning.best == Metrics(0.5, 0.5, 1.0)
    assert is_at(student, start)
    assert [row["val_accuracy"] for row in tuning.history] == [0.5, 0.47]


def test_a_collapsed_epoch_is_repeated_from_the_best_weights_at_a_quarter_of_the_learning_rate(
    student: keras.Model, one_step: Dataset, follow: Callable[..., tuple[FineTuneState, Script]]
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
    farthest = 1.2 * one_step.steps_per_epoch * 0.002
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


def test_divergence_on_one_worker_rolls_all_workers_back(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_table, "MOST_VALUES", 0)  # the first numbers that workers add up are gradients
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
