"""The whole method from Python: what goes in, what is written, and what comes back."""

import gc
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd import energy
from pbd.energy import accounting
from pbd.run_dir.journal import Journal
from tests.helpers.fakes import steady

SMALL = {
    "block": "decoupled_r2",
    "train_limit": 256,
    "batch_size": 32,
    "epochs": 1,
    "fine_tune_epochs": 1,
    "executor": "serial",
    "isolate": False,
}

MEASURES = ("accuracy", "agreement")


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
def tensors_before() -> int:
    """How many stores of images other tests of this process still hold as tensors."""
    from pbd.data.feeds import tf_images

    gc.collect()
    return len(tf_images._TENSORS)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tensors_before: int) -> Path:
    import pbd

    directory = tmp_path_factory.mktemp("pipeline") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy.host_meter, "detect", lambda: metered(lost_with=directory / "student.keras"))
        pbd.distill(model=small_teacher(), run_dir=directory, max_accuracy_drop=1.0, **SMALL)
    return directory


def metered(lost_with: Path) -> energy.DetectedSensors:
    """Return a host whose processor draws 100 W, and whose GPU draws 50 W until this file is there."""
    host = energy.host_identity()
    return energy.DetectedSensors(
        host, (steady(100.0, host), steady(50.0, host, "gpu", gone=lost_with.exists)), ("No more.",)
    )


def assert_counted_by_class(report: dict[str, Any]) -> None:
    """Check that what changed per class agrees with the accuracies of the networks on the test split."""
    changes = report["classes"]
    for network in ("teacher", "student"):
        accuracy = sum(row["images"] * row[f"{network}_accuracy"] for row in changes["classes"])
        assert accuracy / sum(row["images"] for row in changes["classes"]) == pytest.approx(
            report[network]["test_accuracy"]
        )
    change = report["student"]["test_accuracy"] - report["teacher"]["test_accuracy"]
    assert changes["positive_flips"] - changes["negative_flips"] == pytest.approx(change)


def test_the_report_keeps_its_contract(run_dir: Path) -> None:
    said = json.loads((run_dir / "report.json").read_text())
    assert said["version"] == 2
    assert said["config"]["teacher"] == "small"
    assert set(said["teacher"]) >= {"test_accuracy", "val_accuracy", "params", "macs"}
    assert set(said["student"]) >= {"test_accuracy", "val_accuracy", "params", "macs", "path"}
    decisions = {row["layer"]: row["status"] for row in said["blocks"]}
    assert decisions == {"stem": "skipped", "body": "accepted"}
    assert said["judged_by"] == "labels"
    assert ["keras has no 8-bit integers" in event for event in said["story"]] == [True]
    assert said["blocks"][1]["block"] == "decoupled_r2"
    assert said["blocks"][1]["reason"].startswith("accuracy ")
    assert len(said["fine_tune_history"]) == 1
    for network in ("teacher", "student"):
        assert all(0 <= said[network][f"{split}_{mark}"] <= 1 for split in ("val", "test") for mark in MEASURES)
    assert said["student"]["val_accuracy"] >= said["assembled"]["val_accuracy"]
    saved = sum(row["macs_before"] - row["macs_after"] for row in said["blocks"])
    assert said["teacher"]["macs"] - said["student"]["macs"] == saved > 0
    assert said["timing"]["total_s"] >= said["timing"]["distill_s"] > 0
    assert_counted_by_class(said)
    assert [(row["model"], row["target"]) for row in said["deployments"]] == [
        ("teacher", "keras"),
        ("student", "keras"),
    ]
    assert all([each["batch"] for each in row["latency"]] == [1, 32] for row in said["deployments"])


@pytest.mark.usefixtures("run_dir")
def test_teacher_and_data_are_freed_at_the_end_of_a_run_in_this_process(tensors_before: int) -> None:
    from pbd.blockwise import context
    from pbd.data.feeds import tf_images

    gc.collect()
    caches = (context.load_teacher, context.load_dataset, context._load_images)
    assert [cache.cache_info().currsize for cache in caches] == [0, 0, 0]
    assert len(tf_images._TENSORS) <= tensors_before


def test_opening_the_student_leaves_the_random_state(run_dir: Path) -> None:
    from pbd import report
    from pbd.pipeline.api import Result

    before = random.getstate()
    assert Result(report.read(Journal(run_dir))).model.count_params()
    assert random.getstate() == before


def test_the_report_tells_the_joules_and_which_meter_was_lost(run_dir: Path) -> None:
    said = json.loads((run_dir / "report.json").read_text())
    spent, timing = said["energy"], said["timing"]
    assert (spent["source"], spent["hosts"], spent["partial"]) == ("rapl+nvml", 1, True)
    assert spent["by_kind_j"]["package"] == pytest.approx(100 * spent["seconds"], rel=0.01)
    assert timing["distill_s"] < spent["by_kind_j"]["gpu"] / 50 < spent["seconds"]
    assert spent["total_j"] == pytest.approx(sum(spent["by_kind_j"].values()))
    assert spent["seconds"] == pytest.approx(timing["total_s"], abs=0.5)
    lost, other = spent["notes"]
    assert "gpu-0 (nvml): lost after" in lost
    assert "fallen off the bus" in lost
    assert other == "No more."
    (worker,) = said["workers"]
    assert worker["busy_j"] + worker["idle_j"] == pytest.approx(150 * timing["distill_s"], rel=0.02)
    assert [row["energy_j"] for row in said["blocks"]] == [None, pytest.approx(worker["busy_j"])]
    assert worker["busy_j"] == pytest.approx(150 * worker["busy_s"], rel=0.02)
    assert lost in " ".join((run_dir / "summary.txt").read_text().split())


def test_the_student_opens_without_pbd_and_has_the_reported_accuracy(run_dir: Path) -> None:
    import keras

    from pbd import data
    from pbd.config import DataConfig

    said = json.loads((run_dir / "report.json").read_text())
    student = keras.models.load_model(said["student"]["path"])
    assert not student.compiled
    test = list(data.load(DataConfig(batch_size=32), 0).batches("test"))
    scores = student.predict_on_batch(test[0][0])
    assert (scores >= 0).all(), "its teacher ends in softmax, and so does it"
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-5)
    right = [np.argmax(student.predict_on_batch(x), -1) == np.asarray(y) for x, y in test]
    assert np.concatenate(right).mean() == pytest.approx(said["student"]["test_accuracy"])


def test_the_folded_student_gives_the_same_and_opens_without_pbd(run_dir: Path) -> None:
    import keras

    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 1)).astype(np.float32)
    student, folded = (keras.models.load_model(run_dir / f"student{which}.keras") for which in ("", "_folded"))
    wanted = student.predict(images, verbose=0)
    np.testing.assert_allclose(folded.predict(images, verbose=0), wanted, rtol=1e-4, atol=1e-6)
    assert any(isinstance(layer, keras.layers.Concatenate) for layer in student.layers)
    assert not any(isinstance(layer, keras.layers.Concatenate) for layer in folded.layers)


def test_a_finished_run_is_not_done_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pbd
    from pbd import data, report

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.npz")}
    monkeypatch.setattr(data.Dataset, "batches", lambda *_, **__: pytest.fail("the data were read again"))
    again = pbd.distill(model=small_teacher(), run_dir=run_dir, max_accuracy_drop=1.0, resume=True, **SMALL).report
    assert report.to_json(again) == json.loads((run_dir / "report.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.npz")} == before


def test_a_finished_run_that_is_damaged_is_made_whole_again(run_dir: Path, tmp_path: Path) -> None:
    import pbd
    from pbd.run_dir import manifest

    again = Path(shutil.copytree(run_dir, tmp_path / "run"))
    whole = (again / "student.keras").read_bytes()
    (again / "student.keras").write_bytes(whole[:1000] + b"?" + whole[1001:])
    assert manifest.damaged(Journal(again)) == ["student.keras"]
    pbd.distill(model=small_teacher(), run_dir=again, max_accuracy_drop=1.0, resume=True, **SMALL)
    assert manifest.damaged(Journal(again)) == []


def test_a_trained_teacher_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    from pbd.config import RunConfig
    from pbd.networks import files
    from pbd.pipeline import prepare
    from pbd.progress import ProgressDisplay

    config, path = RunConfig.of(teacher_epochs=0, run_dir=tmp_path / "run"), tmp_path / "run" / "teacher.keras"
    with prepare.prepare(config, None, None, ProgressDisplay()) as first:
        whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with prepare.prepare(config.replace(resume=True), None, None, ProgressDisplay()) as second:
        pass
    again = (second.teacher.get_weights(), files.load(str(path)).get_weights())
    for weights in again:
        for before, after in zip(first.teacher.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_second_run_in_the_same_directory_is_refused(run_dir: Path) -> None:
    import pbd
    from pbd.errors import EnvironmentMismatchError
    from pbd.run_dir import lock

    before = {path: path.read_bytes() for path in run_dir.rglob("*.*")}
    with lock.held(run_dir):
        for resume in (True, False):
            with pytest.raises(EnvironmentMismatchError, match="is used by process"):
                pbd.distill(model=small_teacher(), run_dir=run_dir, resume=resume, **SMALL)
    assert {path: path.read_bytes() for path in run_dir.rglob("*.*")} == before


def test_a_run_that_lacks_only_its_student_predicts_nothing_and_keeps_what_was_measured(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pbd
    from pbd import report
    from pbd.costs import calibration

    again = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (again / "report.json").unlink()
    monkeypatch.setattr(calibration, "predict", lambda *_: pytest.fail("there was nothing to predict"))
    monkeypatch.setattr(energy.host_meter, "detect", lambda: metered(lost_with=tmp_path / "never"))
    finished = pbd.distill(model=small_teacher(), run_dir=again, max_accuracy_drop=1.0, resume=True, **SMALL).report
    assert (again / "costs.json").read_bytes() == (run_dir / "costs.json").read_bytes()
    assert (finished.scheduler, finished.groups, finished.timing.predicted_makespan_s) == ("none", (), 0.0)
    assert [(row.busy_s, row.busy_j) for row in finished.workers] == [(0.0, 0.0)]
    assert finished.energy["total_j"] == pytest.approx(150 * finished.energy["seconds"], rel=0.01)
    assert (finished.energy["partial"], finished.energy["notes"][0]) == (False, accounting.RESUMED)
    before = report.read(Journal(run_dir))
    assert finished.student.test_accuracy == pytest.approx(before.student.test_accuracy, abs=0.02)


def test_one_seed_gives_one_student_dropout_included(run_dir: Path, tmp_path: Path) -> None:
    import keras

    import pbd

    again = pbd.distill(model=small_teacher(), run_dir=tmp_path / "again", max_accuracy_drop=1.0, **SMALL).report
    first = keras.models.load_model(run_dir / "student.keras").get_weights()
    second = keras.models.load_model(again.student.path).get_weights()
    assert all(np.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(first, second, strict=True))


def test_no_block_accepted_leaves_the_teacher(tmp_path: Path) -> None:
    import pbd

    report = pbd.distill(model=small_teacher(), run_dir=tmp_path / "run", accuracy_threshold=1.0, **SMALL).report
    assert [row.status for row in report.blocks] == ["skipped", "rejected"]
    assert report.student.macs == report.teacher.macs
    assert report.student.test_accuracy == report.teacher.test_accuracy
    assert report.fine_tune_history == ()


def test_resuming_keeps_the_preprocessing_of_a_named_network(tmp_path: Path) -> None:
    from pbd.config import RunConfig
    from pbd.pipeline import prepare
    from pbd.progress import ProgressDisplay

    config = RunConfig.of(teacher="MobileNet", teacher_epochs=0, run_dir=tmp_path / "run", include_unprofitable=True)
    with prepare.prepare(config, None, None, ProgressDisplay()) as first:
        assert first.data_config.preprocess == "mobilenet"
    with prepare.prepare(config.replace(resume=True), None, None, ProgressDisplay()) as second:
        assert second.data_config.preprocess == "mobilenet"
    assert first.dataset.image_shape == (32, 32, 3)


def assert_judged_by_the_teacher(said: dict[str, Any]) -> None:
    """Check that no accuracy is claimed, and that agreement stands where it would."""
    assert said["judged_by"] == "teacher"
    assert said["config"]["labels"] is False or said["config"]["dataset"].endswith(".npz")
    for network in ("teacher", "student"):
        assert [said[network][f"{split}_accuracy"] for split in ("val", "test")] == [None, None]
    assert said["assembled"]["val_accuracy"] is None
    assert said["teacher"]["test_agreement"] == said["teacher"]["val_agreement"] == 1.0
    for value in (said["student"]["test_agreement"], said["student"]["val_agreement"]):
        assert 0 <= value <= 1
    assert said["student"]["val_agreement"] >= said["assembled"]["val_agreement"]
    trained = [row for row in said["blocks"] if row["status"] in ("accepted", "rejected", "given_back")]
    assert trained
    for row in trained:
        assert row["val_accuracy"] is None
        assert f"{row['val_agreement']:.4f}" in row["reason"]
        assert "agreement" in row["reason"]


def tiny_digits_network(shape: tuple[int, int, int], classes: int) -> Any:
    """Return what stands in for the built-in network: a hundredth of its multiply-accumulates."""
    import keras

    x = inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for name, filters in (("conv1_1", 16), ("conv3_1", 32)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(x)), name="digits_cnn")


def test_without_labels_all_is_judged_by_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in teacher itself is trained on the labels all the same."""
    import pbd
    from pbd.pipeline import built_in

    monkeypatch.setitem(built_in.BUILT_IN, "digits_cnn", tiny_digits_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = SMALL | {"train_limit": 640, "teacher_epochs": 2, "layers": ["conv3_1"]}
    report = pbd.distill(labels=False, run_dir=tmp_path / "run", **settings).report
    said = json.loads((tmp_path / "run" / "report.json").read_text())
    assert_judged_by_the_teacher(said)
    assert report.reference == "teacher"
    assert report.classes is None
    assert report.student.test_agreement > 0.5
    assert "agreement with the teacher" in (tmp_path / "run" / "summary.txt").read_text()
    import keras

    from pbd import data
    from pbd.config import DataConfig
    from pbd.learning import metrics

    teacher = keras.models.load_model(tmp_path / "run" / "teacher.keras")
    assert metrics.accuracy(teacher, data.load(DataConfig(), 0).batches("test")) > 0.4, "it learned from labels"


def test_images_without_labels_and_a_saved_teacher_are_enough(tmp_path: Path) -> None:
    import pbd
    from pbd.errors import BadInputError

    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images)
    small_teacher().save(tmp_path / "small.keras")
    settings = SMALL | {"teacher": tmp_path / "small.keras", "dataset": tmp_path / "images.npz", "train_limit": 96}
    for loss in ("cross_entropy", "mixed"):
        with pytest.raises(BadInputError, match=f"{loss} needs labels.*images.npz.*kd_mse"):
            pbd.distill(run_dir=tmp_path / "run", fine_tune_loss=loss, **settings)
    assert not (tmp_path / "run").exists()
    pbd.distill(run_dir=tmp_path / "run", fine_tune_loss="kd_kl", target_accuracy_drop=1.0, **settings)
    assert_judged_by_the_teacher(json.loads((tmp_path / "run" / "report.json").read_text()))


def undecided_teacher() -> Any:
    """Return the small teacher with a bias for which its answers differ from digit to digit."""
    import keras

    from pbd import data
    from pbd.config import DataConfig

    model = small_teacher()
    head = model.layers[-1]
    images = next(iter(data.load(DataConfig(), 0).batches("train")))[0]
    kernel, _ = head.get_weights()
    features = keras.Model(model.inputs[0], head.input).predict_on_batch(images)
    head.set_weights([kernel, -(features @ kernel).mean(axis=0)])
    return model


def test_a_promise_that_no_block_keeps_gives_the_teacher_back(tmp_path: Path) -> None:
    """The block stays as noise made it, is accepted whatever it does, and is not tuned."""
    import keras

    import pbd

    settings = SMALL | {
        "epochs": 0,
        "fine_tune_epochs": 0,
        "block_init": "noise",
        "max_accuracy_drop": 1.0,
        "labels": False,
    }
    report = pbd.distill(
        model=undecided_teacher(), run_dir=tmp_path / "run", target_accuracy_drop=0.0, **settings
    ).report
    assert [row.status for row in report.blocks] == ["skipped", "given_back"]
    assert report.assembled.val_agreement < 1.0
    assert (report.student.val_agreement, report.student.macs) == (1.0, report.teacher.macs)
    assert report.blocks[1].macs_after == report.blocks[1].macs_before
    assert [line.split(":")[0] for line in report.events] == ["restored body", "keras has no 8-bit integers"]
    ours, theirs = (keras.models.load_model(tmp_path / "run" / f"{name}.keras") for name in ("student", "teacher"))
    assert all(np.array_equal(x, y) for x, y in zip(ours.get_weights(), theirs.get_weights(), strict=True))
    assert "events" in (tmp_path / "run" / "summary.txt").read_text()
