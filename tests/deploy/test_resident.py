"""The memory of a deployed network."""

from pathlib import Path

import keras
import pytest

import pbd
from pbd.deploy import targets
from pbd.deploy.resident import measure  # the fixtures of the tests replace the module's


def network(units: int) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(units, use_bias=False)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


@pytest.mark.skipif(targets.TARGETS["onnx"].obstacle() is not None, reason="ONNX Runtime is absent")
def test_larger_weights_take_more_memory(tmp_path: Path) -> None:
    used = []
    for units in (8, 20_000):
        path = tmp_path / f"{units}.onnx"
        pbd.export(network(units), path)
        used.append(measure(targets.TARGETS["onnx"], path, 1, (8, 8, 3)))
    small, large = used
    weights = 4 * 8 * 8 * 3 * 20_000
    assert large - small > 0.9 * weights
    assert small < weights


def test_memory_that_cannot_be_measured_is_unknown(tmp_path: Path) -> None:
    assert measure(targets.TARGETS["onnx"], tmp_path / "absent.onnx", 1, (8, 8, 3)) is None
    assert measure(targets.TARGETS["keras"], tmp_path / "absent.keras", 1, (8, 8, 3)) is None
