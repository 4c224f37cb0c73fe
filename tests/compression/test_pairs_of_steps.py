"""Every step, alone and behind every other one, and a recipe that is stopped after each of its steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import pbd
from pbd.compression import catalogue
from pbd.compression.context import Context
from pbd.compression.step import StepResult
from pbd.compression.step_folder import StepFolder
from pbd.errors import PbdError
from pbd.run_dir.journal import Journal

pytestmark = pytest.mark.usefixtures("eager")
layers = keras.layers
DIGITS = load_digits()
PIXELS, LABELS = (15.9 * DIGITS.images[..., None]).astype(np.uint8), DIGITS.target


def part(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return PIXELS[first : first + count], LABELS[first : first + count]


DATA = pbd.Data(train=part(0, 32), validation=part(32, 16), test=part(48, 16), batch_size=32)
"""One batch of each split: 90 steps read them, most of them several times."""


def network(seed: int, width: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv0")(layers.Rescaling(1 / 128, -1.0)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="norm0")(x))
    x = layers.Conv2D(width, 3, padding="same", activation="relu", name="conv1")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


ONE_LAYER: dict[str, Any] = {"block": "tucker2_r50", "layers": ("conv1*",), "include_unprofitable": True}
"""Behind itself, a step with these settings replaces the core of its block."""
STEPS: dict[str, Any] = {
    "craft": pbd.Craft(**ONE_LAYER, epochs=0, tune_epochs=1),
    "distill_into": pbd.DistillInto(network(1, 8), epochs=1, loss="kd_kl"),
    "ensemble": pbd.Ensemble([[pbd.PruneWeights(0.2)], [pbd.FineTune(epochs=0)]]),
    "fine_tune": pbd.FineTune(epochs=1),
    "progressive": pbd.Progressive(**ONE_LAYER, epochs=1),
    "prune_filters": pbd.PruneFilters(0.25),
    "prune_weights": pbd.PruneWeights(0.3),
    "quantize": pbd.Quantize(target="onnx-int8", max_drop=1.0, calibration_images=32),
    "replace_blocks": pbd.ReplaceBlocks(**ONE_LAYER, accuracy_threshold=0.0, epochs=0, fine_tune_epochs=0),
}


@dataclass(frozen=True)
class AllPairs:
    """Applies each step, and each step behind it."""

    made: Callable[[tuple[str, str], keras.Model], object]
    """Takes the names of the steps and their network."""

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        for first in STEPS:
            one = STEPS[first].apply(model, in_folder(context, first))
            for second in STEPS:
                before = replace(in_folder(context, f"{first}-{second}"), keeps_zeros=bool(one.keeps_zeros))
                self.made((first, second), STEPS[second].apply(one.model, before).model)
        return StepResult(model)


def in_folder(context: Context, name: str) -> Context:
    folder = context.journal.file(name)
    folder.mkdir()
    return replace(context, journal=Journal(folder))


def test_every_step_works_behind_every_step(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert set(STEPS) == set(catalogue.HOMES), "a new step belongs here"
    networks: dict[tuple[str, str], keras.Model] = {}
    start, run_dir = network(0, 8), str(tmp_path / "run")
    pbd.compress(start, DATA, [AllPairs(networks.__setitem__)], executor="serial", isolate=False, run_dir=run_dir)
    assert len(networks) == len(STEPS) ** 2
    for pair, each in networks.items():
        outputs = keras.ops.convert_to_numpy(each(PIXELS[:8].astype(np.float32)))
        assert outputs.shape == (8, 10), pair
        assert np.isfinite(outputs).all(), pair
    for second in ("fine_tune", "quantize"):
        assert networks["prune_filters", second].count_params() < start.count_params()
    zeros = networks["prune_weights", "fine_tune"].get_layer("conv1").get_weights()[0] == 0
    assert zeros.mean() == pytest.approx(0.3, abs=0.01), "weights that were pruned stay zero"


RECIPE = ("prune_filters", "prune_weights", "fine_tune", "distill_into", "quantize")


def test_a_recipe_that_is_stopped_after_each_step_ends_with_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    settings = {"executor": "serial", "isolate": False, "steps": [STEPS[name] for name in RECIPE]}
    whole = pbd.compress(network(0, 8), DATA, **settings, run_dir=str(tmp_path / "whole"))
    details = {row.name.partition(" ")[2]: row.details for row in whole.report.steps[1:]}
    assert len(details["fine_tune"]["history"]) == 1
    assert details["quantize"]["target"] == "onnx-int8"
    assert (whole.run_dir / "steps/05-quantize/network_int8.onnx").is_file()
    assert not list(whole.run_dir.rglob("fine_tuning"))
    write = StepFolder.write

    def write_and_stop(folder: StepFolder, finished: Any) -> None:
        write(folder, finished)
        raise PbdError("stopped")

    with monkeypatch.context() as stopping:
        stopping.setattr(StepFolder, "write", write_and_stop)
        for number in range(len(RECIPE)):
            with pytest.raises(PbdError, match="stopped"):
                pbd.compress(network(0, 8), DATA, **settings, run_dir=str(tmp_path / "parts"), resume=number > 0)
    parts = pbd.compress(network(0, 8), DATA, **settings, run_dir=str(tmp_path / "parts"), resume=True)
    assert [row.name for row in parts.report.steps] == [row.name for row in whole.report.steps]
    for expected, actual in zip(whole.model.get_weights(), parts.model.get_weights(), strict=True):
        assert np.allclose(expected, actual, atol=1e-6)
