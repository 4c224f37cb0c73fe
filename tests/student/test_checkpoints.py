"""Interrupted fine-tuning resumes after its last epoch and has the same result as without the interruption."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE, Collective, CollectiveLostError
from pbd.config import StudentConfig, TrainingConfig
from pbd.data import Dataset
from pbd.learning import ghost_batch_norm
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.pipeline.remote_tasks import FineTuneTask
from pbd.run_dir.journal import Journal
from pbd.student import fine_tuning
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.validation import Validator
from tests.helpers.palette import damage, ignore, make_dataset, trained_teacher
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")

EPOCHS = 3
NAME = "fine_tuning/state.npz"
START = Metrics(0.1, 0.1, 9.0)


class Interruption(Exception):
    """Stands for the end of the process between two epochs."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The images, with two steps in each epoch."""
    return dataclasses.replace(make_dataset(), batch_size=48)


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return trained_teacher(make_dataset())


@pytest.fixture
def tune(
    teacher: keras.Model, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[FineTuneState, list[np.ndarray]]]:
    """Return a function that tunes a damaged copy of the teacher, with a checkpoint in a folder, if one is given."""
    validate = Validator.metrics

    def run(
        folder: Path | None = None,
        collective: Collective = SINGLE,
        interrupt_at: int | None = None,
        script: Sequence[Metrics] | None = None,
        data: Dataset = dataset,
    ) -> tuple[FineTuneState, list[np.ndarray]]:
        student, validated = graph.flatten(teacher), list[Metrics]()
        damage(student, 0.5)

        def watch(validator: Validator, student: keras.Model) -> Metrics:
            if len(validated) == interrupt_at:
                raise Interruption
            metrics = validate(validator, student)
            validated.append(metrics if script is None else script[len(validated)])
            return validated[-1]

        if collective is SINGLE:
            monkeypatch.setattr(Validator, "metrics", watch)
        checkpoint = CheckpointFile(Journal(folder), NAME, collective) if folder else None
        config = StudentConfig(fine_tune_epochs=EPOCHS, fine_tune_learning_rate=0.01)
        tuning = fine_tuning.fine_tune(student, teacher, data, config, START, ignore, 2, collective, checkpoint)
        return tuning, student.get_weights()

    return run


def assert_equal(one: tuple[FineTuneState, list[np.ndarray]], other: tuple[FineTuneState, list[np.ndarray]]) -> None:
    assert one[0] == other[0]
    for ours, theirs in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


SCORES = [Metrics(0.8, 0.8, 0.5), Metrics(0.7, 0.7, 0.6), Metrics(0.9, 0.9, 0.2)]
"""The second epoch is not the best one so far, but training goes on from its weights."""


def test_training_resumes_after_the_last_epoch(tune: Callable[..., object], tmp_path: Path) -> None:
    whole = tune(script=SCORES)
    assert len(whole[0].history) == EPOCHS
    with pytest.raises(Interruption):
        tune(tmp_path, interrupt_at=2, script=SCORES)
    with pytest.raises(Interruption):
        tune(tmp_path, interrupt_at=0)  # in its first epoch: what was done before is not lost
    assert_equal(tune(tmp_path, script=SCORES[2:]), whole)


def test_complete_fine_tuning_is_repeated_only_if_its_checkpoint_is_damaged(
    tune: Callable[..., object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tune(tmp_path)
    assert_equal(tune(tmp_path, interrupt_at=0), whole)
    assert "starts from the beginning" not in caplog.text
    file = tmp_path / NAME
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert_equal(tune(tmp_path), whole)
    assert "starts from the beginning" in caplog.text


DIVERGING = [
    Metrics(0.8, 0.8, 0.5),
    Metrics(0.3, 0.3, 3.0),
    Metrics(0.6, 0.6, 2.0),
    Metrics(0.8, 0.8, math.nan),
    Metrics(0.9, 0.9, 0.2),
]


def test_rollbacks_are_resumed(tune: Callable[..., object], tmp_path: Path) -> None:
    """An epoch that diverged after the last checkpoint diverges again."""
    whole = tune(script=DIVERGING)
    assert len(whole[0].events) == 2
    assert [row["epoch"] for row in whole[0].history] == [3, 4, 5]
    with pytest.raises(Interruption):
        tune(tmp_path, interrupt_at=4, script=DIVERGING)
    assert_equal(tune(tmp_path, script=DIVERGING[3:]), whole)


def test_several_workers_resume_from_the_same_state(
    tune: Callable[..., object], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = dataclasses.replace(dataset, batch_size=2 * ghost_batch_norm.SMALLEST)
    validate, seen = Validator.metrics, list[Metrics]()

    def at_most_two(validator: Validator, student: keras.Model) -> Metrics:
        if validator.collective.index == 0:
            seen.append(START)
        if len(seen) > 2:
            raise Interruption
        return validate(validator, student)

    (whole, weights), _ = run_threads(2, lambda collective: tune(collective=collective, data=large))
    with monkeypatch.context() as patch:
        patch.setattr(Validator, "metrics", at_most_two)
        with pytest.raises((Interruption, CollectiveLostError)):
            run_threads(2, lambda collective: tune(tmp_path, collective, data=large))
    first, second = run_threads(2, lambda collective: tune(tmp_path, collective, data=large))
    assert first[0] == second[0]
    assert [row["loss"] for row in first[0].history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-3)
    apart = tmp_path / "not shared"
    third, _ = run_threads(2, lambda collective: tune(apart if collective.index else tmp_path, collective, data=large))
    assert len(third[0].history) == EPOCHS, "if one worker does not see the file, all start from the beginning"
    assert weights[0].shape == third[1][0].shape


def test_students_that_differ_only_in_their_widths_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    def file_name(width: int, precision: str = "float32") -> str:
        inputs = keras.Input((8, 8, 3), name="images")
        outputs = keras.layers.Conv2D(4, 3, name="b")(keras.layers.Conv2D(width, 3, name="a")(inputs))
        context = SimpleNamespace(journal=Journal(tmp_path), training=TrainingConfig(precision=precision))
        task = FineTuneTask(context, Path("student.keras"), StudentConfig(), Metrics(1.0, 1.0, 0.0), first_epoch=0)  # type: ignore[arg-type]
        return task._checkpoint(keras.Model(inputs, outputs), SINGLE)._name

    assert file_name(8) != file_name(4)
    assert file_name(8, "bfloat16") != file_name(8)
    assert file_name(4, "float16") == file_name(4), "fine-tuned in float32"
