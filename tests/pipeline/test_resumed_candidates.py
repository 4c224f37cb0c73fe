"""Candidates of a run that was interrupted: the report says which of them an earlier session trained."""

from pathlib import Path

import keras
import numpy as np
import pytest

import pbd
from pbd.report import timeline

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("eager")]


def test_the_report_tells_blocks_of_an_earlier_session_from_those_of_this_one(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 8))
    for name in ("a", "b"):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=name)(x)
    teacher = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 8)).astype(np.float32)
    data = pbd.Data(train=images, validation=images[:32], test=images[:32], batch_size=32, labels=False)
    settings = {"epochs": 0, "fine_tune_epochs": 0, "isolate": False, "executor": "serial", "target": "keras"}
    settings |= {"block": ("spatial_svd_r50", "tucker2_r50"), "run_dir": str(tmp_path / "run")}
    first = pbd.distill(teacher, data, **settings).report
    assert not any(candidate.earlier for row in first.blocks for candidate in row.candidates)
    (tmp_path / "run" / "blocks" / "b@tucker2_r50.npz").unlink()
    report = pbd.distill(teacher, data, resume=True, **settings).report
    earlier = {(row.layer, each.block): each.earlier for row in report.blocks for each in row.candidates}
    assert [key for key, was_earlier in earlier.items() if not was_earlier] == [("b", "tucker2_r50")]
    assert [group.layers for group in timeline.of(report).groups] == [("b",)]
    assert timeline.of(report).earlier == ("a", "b")
