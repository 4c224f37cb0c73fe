"""Runs that keep no block, rejected or restored: the student is the teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.small_run import SMALL, small_teacher

pytestmark = pytest.mark.usefixtures("eager_module")


def test_no_block_accepted_leaves_the_teacher(tmp_path: Path) -> None:
    import pbd

    report = pbd.distill(model=small_teacher(), run_dir=tmp_path / "run", accuracy_threshold=1.0, **SMALL).report
    assert [row.status for row in report.blocks] == ["skipped", "rejected"]
    assert report.student.macs == report.teacher.macs
    assert report.student.test_accuracy == report.teacher.test_accuracy
    assert report.fine_tune_history == ()


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


def test_an_accuracy_target_that_no_block_meets_returns_the_teacher(tmp_path: Path) -> None:
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
    assert [row.status for row in report.blocks] == ["skipped", "restored"]
    assert report.assembled.val_agreement < 1.0
    assert (report.student.val_agreement, report.student.macs) == (1.0, report.teacher.macs)
    assert report.blocks[1].macs_after == report.blocks[1].macs_before
    _, *events = report.events  # the first says where the validation images come from
    assert [line.split(":")[0] for line in events] == ["restored body", "keras has no 8-bit integers"]
    ours, theirs = (keras.models.load_model(tmp_path / "run" / f"{name}.keras") for name in ("student", "teacher"))
    assert all(np.array_equal(x, y) for x, y in zip(ours.get_weights(), theirs.get_weights(), strict=True))
    assert "events" in (tmp_path / "run" / "summary.txt").read_text()
