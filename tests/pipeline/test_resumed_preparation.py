"""A resumed run has the teacher and the preprocessing of the session before."""

from pathlib import Path

import numpy as np


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
