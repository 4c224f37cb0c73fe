"""One complete run: its report, its student, and what a second run in its directory does."""

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
from tests.helpers import short_latencies
from tests.helpers.fakes import steady
from tests.helpers.small_run import SMALL, small_teacher

MEASURES = ("accuracy", "agreement")


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
    with pytest.MonkeyPatch.context() as patch, short_latencies.here():
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
    assert said["version"] == 3
    assert said["config"]["teacher"] == "small"
    assert set(said["teacher"]) >= {"test_accuracy", "val_accuracy", "params", "macs"}
    assert set(said["student"]) >= {"test_accuracy", "val_accuracy", "params", "macs", "path"}
    decisions = {row["layer"]: row["status"] for row in said["blocks"]}
    assert decisions == {"stem": "skipped", "body": "accepted"}
    assert said["reference"] == "labels"
    split_off, int8 = said["events"]
    assert "split off the training images" in split_off
    assert "keras has no 8-bit integers" in int8
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


@pytest.mark.usefixtures("eager")
def test_a_finished_run_that_is_damaged_is_made_whole_again(run_dir: Path, tmp_path: Path) -> None:
    import pbd
    from pbd.run_dir import manifest

    again = Path(shutil.copytree(run_dir, tmp_path / "run"))
    whole = (again / "student.keras").read_bytes()
    (again / "student.keras").write_bytes(whole[:1000] + b"?" + whole[1001:])
    assert manifest.damaged(Journal(again)) == ["student.keras"]
    pbd.distill(model=small_teacher(), run_dir=again, max_accuracy_drop=1.0, resume=True, **SMALL)
    assert manifest.damaged(Journal(again)) == []


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


@pytest.mark.usefixtures("eager")
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
