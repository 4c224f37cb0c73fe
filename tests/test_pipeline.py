"""The whole method from Python: what goes in, what is written, and what comes back."""

import json
from pathlib import Path

import numpy as np
import pytest

SMALL = {"train_limit": 256, "batch_size": 32, "epochs": 1, "fine_tune_epochs": 1, "executor": "serial"}


def small_teacher() -> "object":
    import keras

    keras.utils.set_random_seed(4)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = keras.layers.Dropout(0.2)(x)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="body")(x)
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="small")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pbd

    directory = tmp_path_factory.mktemp("pipeline") / "run"
    pbd.distill(model=small_teacher(), run_dir=directory, max_accuracy_drop=1.0, **SMALL)
    return directory


def test_the_report_keeps_its_contract(run_dir: Path) -> None:
    said = json.loads((run_dir / "report.json").read_text())
    assert said["version"] == 1
    assert said["config"]["teacher"] == "small"
    assert set(said["teacher"]) >= {"test_accuracy", "val_accuracy", "params", "macs"}
    assert set(said["student"]) >= {"test_accuracy", "val_accuracy", "params", "macs", "path"}
    decisions = {row["layer"]: row["status"] for row in said["blocks"]}
    assert decisions == {"stem": "skipped", "body": "accepted"}
    assert said["student"]["val_accuracy"] >= said["assembled"]["val_accuracy"]
    saved = sum(row["macs_before"] - row["macs_after"] for row in said["blocks"])
    assert said["teacher"]["macs"] - said["student"]["macs"] == saved > 0
    assert said["timing"]["total_s"] >= said["timing"]["distill_s"] > 0
    assert said["energy"] == {"source": "none", "total_j": None}


def test_the_student_opens_without_pbd_and_has_the_reported_accuracy(run_dir: Path) -> None:
    import keras

    from pbd import datasets
    from pbd.config import DataConfig

    said = json.loads((run_dir / "report.json").read_text())
    student = keras.models.load_model(said["student"]["path"])
    assert not student.compiled
    test = list(datasets.load(DataConfig(batch_size=32), 0).batches("test"))
    right = [np.argmax(student.predict_on_batch(x), -1) == np.asarray(y) for x, y in test]
    assert np.concatenate(right).mean() == pytest.approx(said["student"]["test_accuracy"])


def test_a_finished_run_is_not_done_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pbd
    from pbd import datasets, report

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.npz")}
    monkeypatch.setattr(datasets.Dataset, "batches", lambda *_, **__: pytest.fail("the data were read again"))
    again = pbd.distill(model=small_teacher(), run_dir=run_dir, max_accuracy_drop=1.0, resume=True, **SMALL)
    assert report.to_json(again) == json.loads((run_dir / "report.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.npz")} == before


def test_one_seed_gives_one_student_dropout_included(run_dir: Path, tmp_path: Path) -> None:
    import keras

    import pbd

    again = pbd.distill(model=small_teacher(), run_dir=tmp_path / "again", max_accuracy_drop=1.0, **SMALL)
    first = keras.models.load_model(run_dir / "student.keras").get_weights()
    second = keras.models.load_model(again.student.path).get_weights()
    assert all(np.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(first, second, strict=True))


def test_no_block_accepted_leaves_the_teacher(tmp_path: Path) -> None:
    import pbd

    report = pbd.distill(model=small_teacher(), run_dir=tmp_path / "run", accuracy_threshold=1.0, **SMALL)
    assert [row.status for row in report.blocks] == ["skipped", "rejected"]
    assert report.student.macs == report.teacher.macs
    assert report.student.test_accuracy == report.teacher.test_accuracy
    assert report.fine_tune_history == ()


def test_resuming_keeps_the_preprocessing_of_a_named_network(tmp_path: Path) -> None:
    from pbd import preparation
    from pbd.config import RunConfig
    from pbd.progress import NullProgress

    config = RunConfig.of(teacher="MobileNet", teacher_epochs=0, run_dir=tmp_path / "run", include_unprofitable=True)
    first = preparation.prepare(config, None, NullProgress())
    second = preparation.prepare(config.replace(resume=True), None, NullProgress())
    assert first.data_config.preprocess == second.data_config.preprocess == "mobilenet"
    assert first.dataset.image_shape == (32, 32, 3)
