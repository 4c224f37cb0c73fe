"""Networks are evaluated beside the teacher, whose outputs are computed once for each split."""

from dataclasses import replace
from pathlib import Path

import keras
import pytest

from pbd.blockwise import context as contexts
from pbd.blockwise.context import TrainingContext
from pbd.collective import SINGLE
from pbd.config import RunConfig
from pbd.learning import class_counts, metrics, teacher_table
from pbd.pipeline.remote_tasks import EvaluateTask
from pbd.run_dir.journal import Journal
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")


def network(name: str) -> keras.Model:
    layers = [keras.Input((32, 32, 1)), keras.layers.AveragePooling2D(8), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(10)], name=name)


@pytest.fixture
def task(tmp_path: Path) -> EvaluateTask:
    """Return a task that evaluates a student on the validation images."""
    for name in ("teacher", "student"):
        network(name).save(tmp_path / f"{name}.keras")
    config, journal = RunConfig(), Journal.create(tmp_path / "run", {})
    path = str(tmp_path / "teacher.keras")
    context = TrainingContext(path, config.data, (32, 32, 1), config.training, {}, "fitted", 0, journal, str(tmp_path))
    return EvaluateTask(context, (tmp_path / "student.keras",), "validation", limit=96)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of the network of every pass."""
    names, predict = list[str](), metrics.predict
    monkeypatch.setattr(metrics, "predict", lambda model, images: names.append(model.name) or predict(model, images))
    return names


def test_the_outputs_of_the_teacher_are_kept(task: EvaluateTask, passes: list[str]) -> None:
    first, _ = task(SINGLE, print)
    count = passes.count("student")
    assert count > 1
    assert passes.count("teacher") == count
    assert task(SINGLE, print)[0] == first
    assert passes.count("teacher") == count < passes.count("student")
    (on_fewer,), _ = replace(task, limit=32)(SINGLE, print)
    (on_others,), _ = replace(task, split="test")(SINGLE, print)
    assert on_others != first[0] != on_fewer
    assert passes.count("teacher") == passes.count("student") - count


def test_the_answers_of_too_many_classes_are_not_counted(task: EvaluateTask, monkeypatch: pytest.MonkeyPatch) -> None:
    by_class = replace(task, by_class=True)
    assert by_class(SINGLE, print)[1] is not None
    monkeypatch.setattr(class_counts, "MOST_CLASSES", 9)
    assert by_class(SINGLE, print)[1] is None


def test_two_teachers_keep_their_outputs(task: EvaluateTask, passes: list[str]) -> None:
    other = Path(task.context.teacher_path).with_name("other.keras")
    network("other").save(other)
    beside_other = replace(task, context=replace(task.context, teacher_path=str(other)))
    (first, second), again = ([each(SINGLE, print)[0] for each in (task, beside_other)] for _ in range(2))
    assert again == [first, second]
    assert first[0].accuracy == second[0].accuracy
    assert first[0].kl != second[0].kl
    assert 4 * passes.count("teacher") == 4 * passes.count("other") == passes.count("student")


def test_outputs_on_other_images_are_not_taken_for_them(task: EvaluateTask, passes: list[str]) -> None:
    """The seed of a run splits off its validation images, unless they have a seed of their own."""

    def computes_outputs(seed: int, split_seed: int | None) -> bool:
        before, data = passes.count("teacher"), replace(task.context.data, split_seed=split_seed)
        replace(task, context=replace(task.context, data=data, seed=seed))(SINGLE, print)
        return passes.count("teacher") > before

    assert [computes_outputs(*seeds) for seeds in ((0, None), (1, 0), (1, None), (0, 1))] == [True, False, True, False]


def test_each_worker_keeps_the_outputs_on_its_images(task: EvaluateTask, passes: list[str]) -> None:
    (alone,), _ = task(SINGLE, print)
    for _ in range(2):
        for (together,), _ in run_threads(2, lambda collective: task(collective, print)):
            assert (together.accuracy, together.agreement) == (alone.accuracy, alone.agreement)
            assert together.kl == pytest.approx(alone.kl, rel=1e-5)
    assert passes.count("teacher") * 3 == passes.count("student") * 2


def test_outputs_that_are_too_many_are_not_kept(
    task: EvaluateTask, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_table, "MOST_VALUES", 10)
    task(SINGLE, print)
    task(SINGLE, print)
    assert passes.count("teacher") == passes.count("student")
    assert not contexts.teacher_outputs(task.context.teacher_path, task.context.session)
