"""Runs without labels: agreement with the teacher replaces accuracy, in the decisions and in the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.small_run import SMALL, small_teacher, tiny_digits_network

pytestmark = pytest.mark.usefixtures("eager_module")


def assert_compared_with_the_teacher(said: dict[str, Any]) -> None:
    """Check that no accuracy is claimed, and that agreement stands where it would."""
    assert said["reference"] == "teacher"
    assert said["config"]["labels"] is False or said["config"]["dataset"].endswith(".npz")
    for network in ("teacher", "student"):
        assert [said[network][f"{split}_accuracy"] for split in ("val", "test")] == [None, None]
    assert said["assembled"]["val_accuracy"] is None
    assert said["teacher"]["test_agreement"] == said["teacher"]["val_agreement"] == 1.0
    for value in (said["student"]["test_agreement"], said["student"]["val_agreement"]):
        assert 0 <= value <= 1
    assert said["student"]["val_agreement"] >= said["assembled"]["val_agreement"]
    trained = [row for row in said["blocks"] if row["status"] in ("accepted", "rejected", "restored")]
    assert trained
    for row in trained:
        assert row["val_accuracy"] is None
        assert f"{row['val_agreement']:.4f}" in row["reason"]
        assert "agreement" in row["reason"]


def test_without_labels_all_is_compared_with_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in teacher itself is trained on the labels all the same."""
    import pbd
    from pbd.pipeline import built_in

    monkeypatch.setitem(built_in.BUILT_IN, "digits_cnn", tiny_digits_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = SMALL | {"train_limit": 640, "teacher_epochs": 2, "layers": ["conv3_1"]}
    report = pbd.distill(labels=False, run_dir=tmp_path / "run", **settings).report
    said = json.loads((tmp_path / "run" / "report.json").read_text())
    assert_compared_with_the_teacher(said)
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
    assert_compared_with_the_teacher(json.loads((tmp_path / "run" / "report.json").read_text()))
