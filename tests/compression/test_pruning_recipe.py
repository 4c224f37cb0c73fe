"""Pruning among other steps: a recipe resumes within a step."""

from pathlib import Path

import numpy as np
import pytest

from pbd.compression import prune_filters
from pbd.compression.prune_filters import PruneFilters
from pbd.compression.pruning.rounds import RoundFiles
from tests.compression.test_recipes import compress

pytestmark = pytest.mark.usefixtures("eager")


def test_a_recipe_resumes_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PruneFilters(ratio=0.5, rounds=2, epochs=1, refit=False)
    whole = compress(tmp_path / "whole", step)
    write, removed = RoundFiles.write, list[object]()
    with monkeypatch.context() as patch:

        def interrupted(*arguments: object) -> None:
            write(*arguments)
            raise KeyboardInterrupt

        patch.setattr(RoundFiles, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path / "parts", step)
    remove = prune_filters.channels.remove
    monkeypatch.setattr(prune_filters.channels, "remove", lambda *of: removed.append(of) or remove(*of))
    resumed = compress(tmp_path / "parts", step, resume=True)
    assert len(removed) == 1
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert resumed.report.steps[1].details == whole.report.steps[1].details
