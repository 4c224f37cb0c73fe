"""A design that is defined elsewhere and registered runs through the whole product."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import blocks
from pbd.blocks.registry import _DESIGNS
from pbd.records import BlockKey, Layer
from pbd.run_dir.journal import Journal


def bottleneck_design() -> blocks.BlockDesign:
    """Return a design whose class no other process can import: it is local to this function."""

    class Bottleneck(blocks.BlockDesign):
        """A 1x1 convolution to a quarter of the channels, a 3x3 convolution, and a 1x1 convolution back."""

        name = "bottleneck"
        per_image = True

        def build(self, x: Any, layer: Layer, seed: int) -> Any:
            narrow = max(1, layer.input_shape[-1] // 4)
            x = keras.layers.Conv2D(narrow, 1, name=f"{layer.name}_narrow")(x)
            x = keras.layers.Conv2D(
                narrow, layer.kernel_size, strides=layer.strides, padding=layer.padding, name=f"{layer.name}_spatial"
            )(x)
            x = keras.layers.Conv2D(layer.output_shape[-1], 1, name=f"{layer.name}_wide")(x)
            return keras.layers.Activation(layer.activation, name=f"{layer.name}_activation")(x)

    return Bottleneck()


@pytest.fixture
def bottleneck() -> Any:
    design = blocks.register(bottleneck_design())
    yield design
    del _DESIGNS[design.name]


def teacher() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="body")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)), name="small")


@pytest.mark.usefixtures("eager")
def test_a_registered_design_runs_through_distill_in_a_process_of_its_own(
    bottleneck: blocks.BlockDesign, tmp_path: Path
) -> None:
    result = pbd.distill(
        teacher(),
        dataset="digits",
        train_limit=128,
        validation_fraction=0.05,
        batch_size=64,
        block="bottleneck",
        epochs=2,
        fine_tune_epochs=1,
        max_accuracy_drop=1.0,
        costs="macs",
        run_dir=str(tmp_path / "run"),
    )
    rows = {row.layer: row for row in result.report.blocks}
    assert (rows["body"].status, rows["body"].block) == ("accepted", "bottleneck")
    assert rows["body"].nmse_history[-1] < rows["body"].nmse_history[0]
    assert {"body_narrow", "body_spatial", "body_wide"} <= {layer.name for layer in result.model.layers}
    assert BlockKey("body", "bottleneck") in Journal(tmp_path / "run").committed_blocks()
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["block"] for row in written["blocks"] if row["layer"] == "body"] == ["bottleneck"]
    folded = keras.models.load_model(tmp_path / "run" / "student_folded.keras", compile=False)
    images = np.random.default_rng(0).uniform(0, 16, (4, 32, 32, 1)).astype("float32")
    np.testing.assert_allclose(folded.predict_on_batch(images), result.model.predict_on_batch(images), atol=1e-3)
