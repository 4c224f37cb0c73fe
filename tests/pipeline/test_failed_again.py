"""A block that fails in a complete run: it is tried again, and nothing else is done again if it fails."""

import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import pytest

from pbd import blocks
from pbd.blocks import registry
from pbd.records import Layer
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal
from tests.pipeline.test_choosing import distill

pytestmark = pytest.mark.usefixtures("eager_module")


@pytest.fixture
def teacher() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for name in ("stem", "a1", "a2"):
        x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))


class FailsInTheMiddle(blocks.BlockDesign):
    """A block without finite outputs for one layer, and a 1x1 convolution for the others."""

    name = "fails_in_the_middle"
    per_image = True
    scales = MappingProxyType({"a2": math.nan})

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        x = keras.layers.Rescaling(self.scales.get(layer.name, 1.0), name=f"{layer.name}_scaled")(x)
        return keras.layers.Conv2D(layer.output_shape[-1], 1, name=f"{layer.name}_pointwise")(x)


def test_what_fails_again_leaves_a_complete_run_as_it_is(
    teacher: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._DESIGNS, FailsInTheMiddle.name, FailsInTheMiddle())
    settings: dict[str, Any] = {"block": FailsInTheMiddle.name, "layers": ("a*",), "max_accuracy_drop": 1.0}
    settings |= {"epochs": 1, "fine_tune_epochs": 1, "costs": "macs"}
    whole = distill(teacher, tmp_path / "run", **settings).report
    assert [key.layer for key in whole.failed_blocks] == ["a2"]
    again = distill(teacher, tmp_path / "run", **settings, resume=True).report
    assert (again.timing, again.student) == (whole.timing, whole.student)
    assert manifest.is_intact(Journal(tmp_path / "run"))
    monkeypatch.setattr(FailsInTheMiddle, "scales", {})
    repaired = distill(teacher, tmp_path / "run", **settings, resume=True).report
    assert not repaired.failed_blocks
