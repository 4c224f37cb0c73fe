"""Runs with more validation images than those on which blocks are scored."""

from pathlib import Path

import pytest

from tests.helpers.small_run import SMALL
from tests.pipeline.test_no_block_kept import undecided_teacher

pytestmark = pytest.mark.usefixtures("eager_module")


def test_blocks_are_compared_with_the_teacher_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pbd
    from pbd import data
    from pbd.blockwise import scoring
    from pbd.config import DataConfig
    from pbd.learning import metrics

    monkeypatch.setattr(scoring, "MOST_IMAGES", 16)
    teacher, settings = undecided_teacher(), SMALL | {"fine_tune_epochs": 0, "max_accuracy_drop": 0.0}
    report = pbd.distill(model=teacher, run_dir=tmp_path / "run", **settings).report
    dataset = data.load(DataConfig(), 0)
    on_some, on_all = (metrics.accuracy(teacher, dataset.batches("validation", limit)) for limit in (16, None))
    assert on_some != on_all == report.teacher.val_accuracy
    assert report.blocks[1].reason.endswith(f" {on_some:.4f}")
    count = len(dataset.validation)
    assert f"blocks were scored on 16 of {count} validation images" in report.events
