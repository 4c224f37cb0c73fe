"""Pruning among other steps: what a step before has set to zero stays zero, and a recipe resumes within a step."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd.compression import prune_filters
from pbd.compression.fine_tune import FineTune
from pbd.compression.prune_filters import PruneFilters
from pbd.compression.prune_weights import PruneWeights
from pbd.compression.pruning.rounds import RoundFiles
from tests.compression.test_recipes import DATA, compress

pytestmark = pytest.mark.usefixtures("eager")


def zeros_of(model: keras.Model) -> np.ndarray:
    kernels = [model.get_layer(name).get_weights()[0] for name in ("first", "second")]
    return np.concatenate([(kernel == 0).ravel() for kernel in kernels])


def test_zeros_stay_in_all_steps_that_follow(tmp_path: Path) -> None:
    steps = PruneWeights(ratio=0.6, rounds=2, epochs=1), FineTune(epochs=2, learning_rate=0.01, keep="last")
    result = compress(tmp_path, PruneFilters(ratio=0.25), *steps, data=replace(DATA, labels=False))
    smaller, pruned, tuned = (result.network(step.name) for step in result.report.steps[1:])
    assert smaller.get_layer("first").filters == smaller.get_layer("second").filters == 6
    assert np.mean(zeros_of(pruned)) == pytest.approx(0.6, abs=0.01)
    assert np.array_equal(zeros_of(tuned), zeros_of(pruned))
    assert any(
        not np.array_equal(one, other) for one, other in zip(tuned.get_weights(), pruned.get_weights(), strict=True)
    )
    details = [step.details for step in result.report.steps[1:]]
    assert details[0]["channels"] == [16, 12]
    assert [row["epoch"] for row in details[1]["history"]] == [1, 2]
    assert details[1]["bytes"]["gzip"] < details[1]["bytes_before"]["gzip"]


def test_a_recipe_resumes_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PruneFilters(ratio=0.5, rounds=2, refit=False)
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
