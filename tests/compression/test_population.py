"""`pbd analyse --population N`: the run of a student is repeated with other seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pbd
from pbd.compression import analyse_command, population, run_recipe
from pbd.compression.fine_tune import FineTune
from pbd.compression.prune_filters import PruneFilters
from pbd.compression.quantize import Quantize
from pbd.compression.recipe import Recipe
from pbd.config import RunConfig
from pbd.errors import UsageError
from pbd.networks import files
from pbd.run_dir.journal import Journal
from tests.compression.test_recipes import DATA, compress, teacher

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run directory of a small network that was pruned and trained, with its images beside it."""
    monkeypatch.setattr(files, "load", files.read)  # not checked in a process of its own, which takes seconds
    monkeypatch.chdir(tmp_path)
    teacher().save("teacher.keras")
    with Path("data.npz").open("wb") as stream:
        DATA.save(stream)
    settings: dict[str, Any] = {"executor": "serial", "isolate": False, "targets": "keras", "run_dir": "run"}
    config = RunConfig.of(batch_size=16)
    steps = [PruneFilters(ratio=0.5, refit=False), FineTune(epochs=1, learning_rate=0.01)]
    pbd.compress(steps=steps, config=config, teacher="teacher.keras", dataset="data.npz", **settings)
    return tmp_path / "run"


def weights(path: Path) -> np.ndarray:
    return np.concatenate([each.ravel() for each in files.read(path).get_weights()])


def test_the_run_is_repeated_with_the_seeds_that_follow(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = str(run / "student.keras")
    arguments = ["teacher.keras", student, "--layers", "first", "--json"]
    capsys.readouterr()  # progress of the run
    assert analyse_command.main([*arguments, "--population", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["population"]["teachers"], report["population"]["students"]) == (1, 3)
    folders = [run / "population" / f"seed-{seed}" for seed in (1, 2)]
    assert [row["name"] for row in report["students"]] == [student, *(str(one / "student.keras") for one in folders)]
    first, second, third = (weights(one / "student.keras") for one in (run, *folders))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    written = (folders[0] / "steps" / "02-fine_tune" / "step.json").stat().st_mtime_ns
    assert analyse_command.main([*arguments, "--population", "2"]) == 0
    assert (folders[0] / "steps" / "02-fine_tune" / "step.json").stat().st_mtime_ns == written, "it was complete"


def test_a_built_in_teacher_is_trained_with_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal.create(tmp_path, {"teacher": "digits_cnn"})
    settings = RunConfig.of(seed=2**32 - 2, executor="mpi", epochs=5, target="keras", workers=4).flat()
    ran: list[RunConfig] = []
    monkeypatch.setattr(population, "_read", lambda journal, name: (settings, ran.append))
    repeated = population.repeat(str(tmp_path / "student.keras"), 3, None, {"executor": "dask", "workers": 2})
    assert [config.seed for config in ran] == [2**32 - 1, 0]
    assert {(one.teacher.teacher, one.training.epochs, one.execution.target) for one in ran} == {
        ("digits_cnn", 5, "keras")
    }
    assert {(one.execution.executor, one.execution.workers) for one in ran} == {("dask", 2)}
    assert {one.data.split_seed for one in ran} == {2**32 - 2}, "validation images are those of the run"
    folder = tmp_path / "population"
    assert repeated.originals == tuple(str(folder / f"seed-{seed}" / "teacher.keras") for seed in (2**32 - 1, 0))


def test_a_teacher_with_weights_from_a_file_is_one_in_all_repetitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal.create(tmp_path, {"teacher": "VGG16"})
    settings = RunConfig.of(teacher="VGG16", teacher_weights="vgg.weights.h5").flat()
    ran: list[RunConfig] = []
    monkeypatch.setattr(population, "_read", lambda journal, name: (settings, ran.append))
    repeated = population.repeat(str(tmp_path / "student.keras"), 2, None, {})
    assert ran[0].teacher.teacher == str(tmp_path / "teacher.keras")
    assert ran[0].teacher.teacher_weights is None
    assert repeated.originals == ()


@pytest.mark.parametrize(
    ("steps", "expected"), [([Quantize(max_drop=1.0, calibration_images=16)], "onnx"), ([FineTune(epochs=0)], "keras")]
)
def test_a_recipe_is_repeated_in_its_target_if_a_step_uses_it(
    steps: list[Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    compress(tmp_path, *steps, targets="onnx")
    repeated: list[Recipe] = []
    monkeypatch.setattr(run_recipe, "run", lambda made, config: repeated.append(made()))
    settings, run = population._read(Journal(tmp_path / "run"), "student.keras")
    assert settings["target"] == "onnx"
    run(RunConfig())
    assert [each.targets for each in repeated] == [(expected,)]


def test_what_cannot_be_repeated_is_refused(tmp_path: Path) -> None:
    compress(tmp_path, PruneFilters(ratio=0.5, refit=False))
    run = tmp_path / "run"
    with pytest.raises(UsageError, match=r"came from a Python program\. Give --dataset"):
        population.repeat(str(run / "student.keras"), 2, None, {})
    for name in ("run/teacher.keras", "student.keras"):
        with pytest.raises(UsageError, match=r"which is not the student\.keras of a run"):
            population.repeat(str(tmp_path / name), 2, None, {})
