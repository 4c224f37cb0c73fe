"""The efficiency study: which teacher each step has, what the clock covers, and the whole table on a tiny network."""

import csv
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from experiments import efficiency, timed_training
from experiments.efficiency_plans import LABELS, Plan, Spent, Training, student_plans, teacher_plans
from experiments.timed_training import TaughtModel
from pbd.data import feeds
from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.errors import UsageError
from pbd.learning import losses


def tiny(name: str, dataset: object, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)), name=name)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a tiny network and a few random images, without pipelines, which take longer than the steps."""
    monkeypatch.setattr(timed_training, "build", tiny)
    monkeypatch.setattr(feeds, "current", NumpyFeed)
    random, arrays = np.random.default_rng(0), {}
    for name, count in (("train", 48), ("val", 12), ("test", 12)):
        arrays[f"x_{name}"] = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
        arrays[f"y_{name}"] = np.arange(count) % 3
    np.savez(tmp_path / "images.npz", **arrays)
    sizes = ["--epochs", "1", "--teachers", "2", "--batch-size", "24"]
    return ["--quick", "--dataset", str(tmp_path / "images.npz"), "--run-dir", str(tmp_path / "runs"), *sizes]


def constant(logits: list[float], name: str) -> keras.Model:
    """Return a network with these logits for every image."""
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(len(logits))(inputs), name=name)
    model.set_weights([np.zeros((2, len(logits))), np.array(logits)])
    return model


def test_only_the_first_share_of_the_steps_has_a_teacher() -> None:
    for share, distilled in ((0.25, 25), (0.5, 50), (1.0, 100)):
        schedule = Plan("kl", 0, 10, ("one",), share=share).schedule(100)
        assert schedule.tolist() == [1] * distilled + [LABELS] * (100 - distilled)
    assert set(Plan("labels", 0, 10).schedule(100)) == {LABELS}
    assert set(Plan("mean", 0, 10, ("one", "two"), mean=True).schedule(100)) == {1}


def test_the_seed_decides_which_teacher_a_step_has() -> None:
    first, again, other = (Plan("drawn", seed, 10, ("one", "two", "three")).schedule(3000) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    counts = np.bincount(first, minlength=4)
    assert counts[LABELS] == 0
    assert counts[1:].min() > 900, "all teachers are drawn equally often"
    half = Plan("drawn", 0, 10, ("one", "two", "three"), share=0.5).schedule(3000)
    np.testing.assert_array_equal(half[:1500], first[:1500])
    assert set(half[1500:]) == {LABELS}


def test_a_generation_learns_from_all_before_it_and_a_student_from_all() -> None:
    teachers, students = teacher_plans(5, 4, 3), student_plans(5, 4, 3)
    assert [teachers[f"generation-{n}"].teachers for n in (2, 3)] == [("teacher-1",), ("teacher-1", "generation-2")]
    assert students["Matryoshka"].teachers == ("teacher-1", "generation-2", "generation-3")
    assert {plan.seed for plan in students.values()} == {5}
    assert not {plan.seed for plan in teachers.values()} & {5}
    assert {plan.epochs for name, plan in students.items() if "half" in name} == {2}
    names = [plan.name for plan in (*students.values(), *teachers.values())]
    assert len(set(names)) == len(names), "each training has files of its own"


def test_the_loss_of_a_step_is_that_of_its_teacher() -> None:
    student, labels, images = constant([0.0, 0.0], "student"), np.array([0, 1]), np.zeros((2, 2), np.float32)
    model = TaughtModel(student, [constant([2.0, 0.0], "one"), constant([0.0, 4.0], "two")], losses.kd_mse, 0.5)
    model.compile(keras.optimizers.SGD(0.0))
    values = [float(model.test_on_batch([images, np.full(2, number, np.int32)], labels)) for number in (LABELS, 1, 2)]
    np.testing.assert_allclose(values, np.log(2.0) + 0.5 * np.array([0.0, 2.0, 8.0]), rtol=1e-5)


def test_compilation_leaves_the_student_and_the_optimizer_as_they_are() -> None:
    student = tiny("student", None, 0)
    model = TaughtModel(student, [], losses.kd_mse, 1.0)
    model.compile(timed_training.adam(0.01, 10, student.trainable_variables))
    before = student.get_weights()
    images = np.random.default_rng(0).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)
    timed_training.compile_step(model, [images, np.full(6, LABELS, np.int32)], np.arange(6) % 3)
    for one, two in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert int(model.optimizer.iterations) == 0


def test_the_clock_runs_during_training_steps_only(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def advance(seconds: float) -> float:
        clock[0] += seconds
        return 0.5

    fake = SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0])
    monkeypatch.setattr(timed_training, "time", fake)
    monkeypatch.setattr(TaughtModel, "train_on_batch", lambda self, inputs, labels: advance(1.0))
    monkeypatch.setattr(timed_training.metrics, "accuracy", lambda student, batches: advance(100.0))
    folder = efficiency.training_folder(efficiency.parse(arguments))
    assert folder.train(Plan("labels", 0, 3)).seconds == [2.0, 2.0, 2.0]
    assert clock[0] > 400


def test_the_first_epoch_at_the_target_counts() -> None:
    training = Training([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [0.2, 0.5, 0.4], 0.4)
    assert training.spent_until(0.1) == Spent(1, 1.0, 0.1)
    assert training.spent_until(0.5) == Spent(2, 3.0, pytest.approx(0.3))
    assert training.spent_until(0.6) is None
    assert training.spent() == Spent(3, 6.0, pytest.approx(0.6))


def test_a_line_compares_the_times_to_the_target_with_and_without_the_teachers() -> None:
    class Folder:
        def train(self, plan: Plan) -> Training:
            assert not plan.teachers
            return Training([10.0], [9.0], [0.3], 0.3)

    plans = teacher_plans(0, 1, 2)
    drawn = Plan("drawn", 0, 2, ("teacher-1", "teacher-2"))
    baseline = Training([4.0, 4.0], [3.0, 3.0], [0.3, 0.6], 0.5)
    study = efficiency.Study(Folder(), plans, done={"drawn": Training([5.0, 5.0], [4.0, 4.0], [0.6, 0.7], 0.6)})
    row = study.row("teacher drawn per step", drawn, baseline)
    assert (row.target, row.epochs_to_target, row.teachers_seconds) == (0.6, 1, 20.0)
    assert (row.times_as_fast, row.cpu_times_as_fast) == (8 / 5, 6 / 4)
    assert (row.times_as_fast_with_teachers, row.cpu_times_as_fast_with_teachers) == (8 / 25, 6 / 22)
    assert row.change_points == pytest.approx(10)
    assert "5.7" in row.source
    study.done["drawn"] = Training([5.0, 5.0], [4.0, 4.0], [0.1, 0.2], 0.2)
    row = study.row("teacher drawn per step", drawn, baseline)
    assert (row.epochs_to_target, row.times_as_fast, row.times_as_fast_with_teachers) == (None, None, None)


@pytest.mark.usefixtures("eager")
def test_the_whole_table_is_computed_once_and_goes_on(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert efficiency.main(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("5.4: 77.48", "5.7: 70.55 to 73.04", "not in these tables", "What differs", "1.96 times"):
        assert words in text
    rows = read(runs / "efficiency.csv")
    assert [row["method"] for row in rows] == list(student_plans(0, 2, 2))
    alone, drawn, matryoshka = rows[0], rows[5], rows[7]
    assert (alone["times_as_fast"], float(alone["teachers_seconds"]), alone["distilled_share"]) == ("1.0", 0, "0.0")
    assert float(drawn["teachers_seconds"]) > 0
    assert float(matryoshka["seconds"]) > 0

    (runs / "drawn.json").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert efficiency.main(arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json") if path.name in kept} == kept
    again = read(runs / "efficiency.csv")
    assert again[5]["test_accuracy"] == drawn["test_accuracy"], "the same teachers are drawn"
    assert again[0] == alone
    assert efficiency.main([*arguments, "--weight", "2"]) != 0
    assert "other settings" in capsys.readouterr().err


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_full_is_the_setting_of_the_sources() -> None:
    full = efficiency.parse(["--full", "--dataset", "imagenet"])
    assert (full.network, full.epochs, full.teachers, full.train_limit, full.image_size) == (
        "ResNet50",
        90,
        7,
        None,
        224,
    )
    assert {plan.epochs for plan in student_plans(0, full.epochs, full.teachers).values()} == {90, 45}
    with pytest.raises(UsageError, match="resnet20"):
        efficiency.check_network("resnet2")
