"""Activations that LiteRT computes slowly in 8-bit integers are written with operations that it computes fast."""

from pathlib import Path

import keras
import numpy as np
import pytest

import pbd
from pbd.deploy import latency, targets
from pbd.deploy.runtimes import litert_activations
from pbd.networks import graph
from tests.deploy.small_networks import SHAPE, data, images

layers = keras.layers


def network() -> keras.Model:
    """A network with ceilings, and with hard swish as a layer and as the activation of a convolution."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = layers.ReLU(max_value=0.75)(layers.Conv2D(16, 3)(layers.Rescaling(1 / 255)(inputs)))
    x = layers.Activation("hard_swish")(layers.Conv2D(16, 3)(x))
    x = layers.Conv2D(16, 3, activation="hard_silu")(x)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def test_what_is_computed_stays_the_same() -> None:
    model, pixels = network(), images(8).astype("float32")
    keras.utils.clear_session(free_memory=False)  # names of layers begin again, as in another process
    expected = np.asarray(model(pixels))
    np.testing.assert_allclose(litert_activations.for_int8(model)(pixels), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model(pixels), expected)


def test_other_activations_stay_as_they_are() -> None:
    inputs = keras.Input(SHAPE)
    x = layers.ReLU(6.0)(layers.ReLU()(layers.Conv2D(4, 3, activation="silu")(inputs)))
    x = layers.ReLU(max_value=2.0, negative_slope=0.1)(layers.ReLU(max_value=2.0, threshold=1.0)(x))
    x = layers.ReLU(max_value=0.0)(layers.ReLU(max_value=float("inf"))(x))
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    assert litert_activations.for_int8(model) is model


def test_the_file_has_no_slow_operation(tmp_path: Path) -> None:
    if obstacle := targets.TARGETS["litert-int8"].obstacle():
        pytest.skip(obstacle)
    from ai_edge_litert.interpreter import Interpreter

    model, path = network(), tmp_path / "a.tflite"
    quantized = pbd.quantize(model, data(model), path, max_drop=1.0)
    assert quantized.agreement.difference < 0.1
    measured = latency.deployed_file("a", graph.flatten(model), targets.TARGETS["litert-int8"], tmp_path / "b")
    for file in (path, measured.path):
        operations = [each["op_name"] for each in Interpreter(str(file))._get_ops_details()]
        assert not {"HARD_SWISH", "MINIMUM", "MAXIMUM"} & set(operations)
        assert operations.count("QUANTIZE") == 1, "only the images are rounded"
