"""How fine-tuning begins: with a learning rate that rises, and scaled steps unless weights are random."""

import dataclasses
import math
from typing import Any

import keras
import pytest

from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.student import fine_tuning
from pbd.student.validation import Validator
from tests.helpers.palette import ignore
from tests.student.test_features import START, make_student, tune

pytestmark = pytest.mark.usefixtures("eager")


def test_the_learning_rate_rises_first(dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    adam = fine_tuning.adam
    monkeypatch.setattr(fine_tuning, "adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])
    larger = dataclasses.replace(dataset, batch_size=32)  # 3 steps in each of 3 epochs
    state = tune(make_student(), teacher, larger, warmup=1 / 3)
    schedule = made[0]._learning_rate
    rates = [float(schedule(step)) for step in range(10)]
    assert rates[:4] == pytest.approx([0.004 / 3, 0.004 * 5 / 9, 0.004 * 7 / 9, 0.004])
    assert rates[9] == pytest.approx(0.0, abs=1e-9)
    assert [row["learning_rate"] for row in state.history] == pytest.approx([0.004, 0.004, 0.002])
    assert rates[6] == pytest.approx(0.002)


def test_the_learning_rate_rises_up_to_the_last_step_at_most(dataset: Dataset, teacher: keras.Model) -> None:
    larger = dataclasses.replace(dataset, batch_size=32)  # 9 steps, of which the rise would take all
    state = tune(make_student(), teacher, larger, warmup=0.99)
    assert [row["learning_rate"] for row in state.history] == pytest.approx([0.004, 0.004, 0.004])


def test_the_learning_rate_rises_again_after_a_divergence(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, adam = list[Any](), fine_tuning.adam
    monkeypatch.setattr(fine_tuning, "adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])
    scores = iter([(0.8, 0.5), (0.2, 3.0), (0.9, 0.4), (0.9, 0.3)])
    monkeypatch.setattr(Validator, "metrics", lambda *a: Metrics((s := next(scores))[0], s[0], s[1]))
    larger = dataclasses.replace(dataset, batch_size=32)  # 3 steps in each of 3 epochs
    state = tune(make_student(), teacher, larger, warmup=1 / 3)
    again = [float(made[1]._learning_rate(step)) for step in range(7)]
    assert again[:3] == pytest.approx([0.0005, 0.00075, 0.001]), "to a quarter of 0.004, in 2 of 6 steps"
    assert again[6] == pytest.approx(0.0, abs=1e-9)
    assert [row["learning_rate"] for row in state.history] == pytest.approx([0.004, 0.001, again[3]])


def test_only_trained_weights_have_scaled_steps(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = list[bool]()
    adam = fine_tuning.adam
    monkeypatch.setattr(fine_tuning, "adam", lambda *a, **k: scaled.append(k["scale_steps"]) or adam(*a, **k))
    config = StudentConfig(fine_tune_epochs=1)
    for distillation in (DistillationConfig(), DistillationConfig(from_random_weights=True)):
        fine_tuning.fine_tune(make_student(), teacher, dataset, config, START, ignore, distillation=distillation)
    assert scaled == [True, False]


def test_from_random_weights_a_collapse_is_no_divergence(
    dataset: Dataset, teacher: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.6, 0.34, math.nan, 0.7])
    monkeypatch.setattr(Validator, "metrics", lambda *a: Metrics(s := next(scores), s, s))
    config = StudentConfig(fine_tune_epochs=3, fine_tune_learning_rate=0.004)
    distillation = DistillationConfig(from_random_weights=True)
    state = fine_tuning.fine_tune(make_student(), teacher, dataset, config, START, ignore, distillation=distillation)
    assert [row["val_accuracy"] for row in state.history] == [0.6, 0.34, 0.7]
    assert len(state.events) == 1
    assert "not finite" in state.events[0]
