"""A resumed run has the teacher and the preprocessing of the session before, and none of its temporary files."""

import uuid
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.small_run import tiny_digits_network


@pytest.fixture
def _tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd.pipeline import built_in

    monkeypatch.setitem(built_in.BUILT_IN, "digits_cnn", tiny_digits_network)


@pytest.mark.usefixtures("_tiny_teacher")
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


def test_resuming_keeps_the_preprocessing_of_a_named_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from pbd.config import RunConfig
    from pbd.pipeline import prepare
    from pbd.progress import ProgressDisplay
    from tests.helpers.applications import APPLICATIONS

    monkeypatch.setattr(keras.applications, "MobileNetV2", APPLICATIONS["MobileNetV2"])
    config = RunConfig.of(teacher="MobileNetV2", teacher_epochs=0, run_dir=tmp_path / "run", include_unprofitable=True)
    with prepare.prepare(config, None, None, ProgressDisplay()) as first:
        assert first.data_config.preprocess == "mobilenet_v2"
    with prepare.prepare(config.replace(resume=True), None, None, ProgressDisplay()) as second:
        assert second.data_config.preprocess == "mobilenet_v2"
    assert first.dataset.image_shape == (32, 32, 3)


@pytest.mark.usefixtures("_tiny_teacher")
def test_what_killed_writers_left_is_removed_from_all_folders(tmp_path: Path) -> None:
    from pbd.config import RunConfig
    from pbd.pipeline import prepare
    from pbd.progress import ProgressDisplay

    config = RunConfig.of(teacher_epochs=0, run_dir=tmp_path / "run")
    with prepare.prepare(config, None, None, ProgressDisplay()):
        pass
    folders = [tmp_path / "run" / name for name in ("", "blocks", "front/0.6")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{uuid.uuid4().hex}.tmp").touch()
        (folder / ".notes.tmp").touch()
    with prepare.prepare(config.replace(resume=True), None, None, ProgressDisplay()):
        assert {file.name for file in tmp_path.rglob("*.tmp")} == {".notes.tmp"}
