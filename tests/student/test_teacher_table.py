"""The teacher's logits are computed once, and learned from as if each step computed them."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd.config import DistillationConfig, Feature, StudentConfig
from pbd.data import Dataset
from pbd.learning import teacher_table
from pbd.learning.distillation import DistillationModel
from pbd.networks import graph
from pbd.student import fine_tuning
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import validate
from tests.helpers.palette import damage, ignore, predict, some_images

pytestmark = pytest.mark.usefixtures("eager")
FEATURE = DistillationConfig((Feature("mse", "a", "a", 1.0),))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The labels and logits of every table that is used."""
    used, use = [], DistillationModel.use_table
    monkeypatch.setattr(DistillationModel, "use_table", lambda model, *of: used.append(of) or use(model, *of))
    return used


def tuned(
    teacher: keras.Model, dataset: Dataset, distillation: DistillationConfig | None = None, **settings: Any
) -> tuple[keras.Model, FineTuneState]:
    """Return a damaged copy of the teacher after two epochs, and how it was tuned."""
    student = graph.flatten(teacher)
    damage(student, 0.5)
    config = StudentConfig(**{"fine_tune_epochs": 2, "fine_tune_learning_rate": 0.004, **settings})
    start = validate(student, teacher, dataset)
    return student, fine_tuning.fine_tune(student, teacher, dataset, config, start, ignore, distillation=distillation)


@pytest.mark.parametrize("loss", ["kd_mse", "mixed"])
def test_a_student_learns_as_from_the_teacher_itself(
    loss: str,
    teacher: keras.Model,
    two_steps: Dataset,
    tables: list[tuple[np.ndarray, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, tuning = tuned(teacher, two_steps, fine_tune_loss=loss)
    ((labels, logits),) = tables
    images = np.concatenate([images for images, _ in two_steps.batches("train")])
    np.testing.assert_array_equal(labels, two_steps.train.labels)
    np.testing.assert_allclose(logits, predict(teacher, images), atol=1e-4)
    monkeypatch.setattr(teacher_table, "MOST_VALUES", 0)
    expected, by_step = tuned(teacher, two_steps, fine_tune_loss=loss)
    assert len(tables) == 1
    assert [row["loss"] for row in tuning.history] == pytest.approx([row["loss"] for row in by_step.history], rel=1e-4)
    np.testing.assert_allclose(predict(student, some_images()), predict(expected, some_images()), atol=1e-3)


@pytest.mark.parametrize(
    ("data", "settings", "distillation"),
    [
        ({"augment": "flip"}, {}, None),
        ({}, {"mixup": 1.0}, None),
        ({}, {"fine_tune_epochs": 1}, None),
        ({}, {"fine_tune_loss": "cross_entropy"}, None),
        ({}, {}, FEATURE),
    ],
    ids=["augmented", "mixed images", "one epoch", "no teacher", "a loss between layers"],
)
def test_no_table_where_logits_would_not_be_used_again(
    data: dict[str, Any],
    settings: dict[str, Any],
    distillation: DistillationConfig | None,
    teacher: keras.Model,
    two_steps: Dataset,
    tables: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    tuned(teacher, replace(two_steps, **data), distillation, **settings)
    assert tables == []


def test_no_table_for_networks_that_begin_with_augmentation(
    teacher: keras.Model, two_steps: Dataset, tables: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    inputs = keras.Input(teacher.input_shape[1:])
    flipping = keras.Model(inputs, teacher(keras.layers.RandomFlip(seed=1)(inputs)))
    tuned(graph.flatten(flipping), two_steps)
    assert tables == []
