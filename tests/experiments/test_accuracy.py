"""The table of what each step is worth: its rows are real runs, taken up again where they were run before."""

import csv
import functools
from pathlib import Path

import numpy as np
import pytest

from experiments import accuracy
from pbd.errors import UsageError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with one convolution to replace; its weights are random but fixed."""
    import keras

    keras.utils.set_random_seed(3)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(16, 3, strides=4, activation="relu", name="stem")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="a")(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    path = tmp_path_factory.mktemp("teacher") / "small.keras"
    keras.Model(inputs, outputs).save(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the digits: two batches to train on, and one each to choose and to test with."""
    from pbd import data
    from pbd.config import RunConfig

    digits, arrays = data.load(RunConfig.of().data, 0), {}
    for name, split, count in (("train", digits.train, 128), ("val", digits.validation, 64), ("test", digits.test, 64)):
        arrays |= {f"x_{name}": split.images.array[split.rows[:count]], f"y_{name}": split.labels[:count]}
    path = tmp_path_factory.mktemp("images") / "digits.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.usefixtures("eager")
def test_rows_are_real_runs_and_are_not_run_twice(
    teacher: Path, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    import pbd
    from pbd import data
    from pbd.config import RunConfig
    from pbd.learning import metrics

    monkeypatch.setattr(pbd, "distill", functools.partial(pbd.distill, isolate=False))
    common = [*("--teacher", str(teacher), "--dataset", images, "--epochs", "1", "--fine-tune-epochs", "1")]
    arguments = [*common, "--runs", str(tmp_path), "--csv", str(tmp_path / "table.csv")]
    arguments += ["--recipes", "+ least squares", "no labels"]
    assert accuracy.main(arguments) == 0
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        labelled, unlabelled = csv.DictReader(file)
    assert (labelled["recipe"], unlabelled["recipe"]) == ("+ least squares", "no labels")
    assert 0 < float(labelled["nmse"]) < 0.5
    assert labelled["params"] == unlabelled["params"]

    dataset = data.load(RunConfig.of(dataset=images).data, 0, split_by_class=False)
    student = keras.models.load_model(tmp_path / "no_labels" / "student.keras", compile=False)
    assert float(unlabelled["test_accuracy"]) == metrics.accuracy(student, dataset.batches("test"))

    written = (tmp_path / "no_labels" / "student.keras").stat().st_mtime_ns
    capsys.readouterr()
    assert accuracy.main(arguments) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("this run is already complete") == 2
    assert (tmp_path / "no_labels" / "student.keras").stat().st_mtime_ns == written


def test_an_unknown_recipe_is_refused_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = accuracy.main(["--recipes", "paper", "papre", "--runs", str(tmp_path / "runs")])
    assert code == UsageError.exit_code
    assert "Did you mean 'paper'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_each_recipe_is_a_setting_of_pbd() -> None:
    from pbd.config import RunConfig

    for recipe, settings in accuracy.RECIPES.items():
        flat = RunConfig.of(**settings).flat()
        assert flat.items() >= (settings | {"block": (settings["block"],)}).items(), recipe
    paper = RunConfig.of(recipe="paper", max_drop=None)
    assert paper == RunConfig.of(**accuracy.RECIPES["paper"])
    defaults = RunConfig.of(block="decoupled_r2").flat()
    whole = accuracy.RECIPES["+ least squares"]
    assert whole | {"block": (whole["block"],)} == {name: defaults[name] for name in whole}, (
        "the whole is what users get with this design"
    )
