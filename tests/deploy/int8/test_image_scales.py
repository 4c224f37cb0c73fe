"""Scales of images in the kernels that read them: what is computed stays the same, and runtimes fold nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.deploy import targets
from pbd.deploy.int8 import image_scales, quantizing, sensitivity
from tests.deploy.small_networks import SHAPE, classifier, data, images

layers = keras.layers
NORMALISATION = {"mean": (120.0, 110.0, 100.0), "variance": (60.0, 50.0, 40.0)}


def network(preprocessing: Sequence[keras.Layer], *readers: keras.Layer, pixels: bool = False) -> keras.Model:
    """Return a network of which `readers` read the preprocessed images; with `pixels`, the images are used as well."""
    inputs = keras.Input(SHAPE)
    x = inputs
    for layer in preprocessing:
        x = layer(x)
    joined = [layers.GlobalAveragePooling2D()(reader(x)) for reader in readers]
    joined += [layers.GlobalAveragePooling2D()(inputs)] if pixels else []
    x = layers.Concatenate()(joined) if len(joined) > 1 else joined[0]
    return keras.Model(inputs, layers.Dense(4)(x))


def names(model: keras.Model) -> set[str]:
    return {type(layer).__name__ for layer in model.layers}


def assert_same(model: keras.Model, other: keras.Model) -> None:
    pixels = images(8).astype("float32")
    expected = np.asarray(model(pixels))
    np.testing.assert_allclose(other(pixels), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def adapted() -> keras.Layer:
    layer = layers.Normalization()
    layer.adapt(images(8, seed=1))
    return layer


@pytest.mark.parametrize(
    ("preprocessing", "left"),
    [
        (lambda: [layers.Rescaling(1 / 255)], set()),
        (lambda: [layers.Rescaling(1 / 127.5, offset=-1)], {"Normalization"}),
        (lambda: [layers.Normalization(**NORMALISATION)], {"Normalization"}),
        (lambda: [layers.Normalization(axis=None, mean=120.0, variance=60.0)], {"Normalization"}),
        (lambda: [adapted()], {"Normalization"}),
        (
            lambda: [layers.Rescaling(1 / 255), adapted(), layers.Rescaling([0.8, 2.0, 1.0])],
            {"Normalization"},
        ),
    ],
)
def test_scales_move_into_the_kernels(preprocessing: Any, left: set[str]) -> None:
    readers = [
        layers.Conv2D(5, 3, padding="same", activation="relu"),
        layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, use_bias=False),
    ]
    model = network(preprocessing(), *readers)
    result = image_scales.folded(model)
    assert names(result) & {"Normalization", "Rescaling"} == left
    assert_same(model, result)


def test_a_border_of_zeros_may_lie_between() -> None:
    inputs = keras.Input(SHAPE)
    x = layers.ZeroPadding2D(2)(layers.Normalization(**NORMALISATION)(inputs))
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(x))))
    result = image_scales.folded(model)
    assert not np.array_equal(result.get_layer(model.layers[3].name).kernel, model.layers[3].kernel)
    assert_same(model, result)


def test_integers_are_converted() -> None:
    inputs = keras.Input(SHAPE, dtype="uint8")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, layers.Dense(4)(x))
    result = image_scales.folded(model)
    assert result.get_layer(model.layers[1].name).scale == 1.0
    np.testing.assert_allclose(result(images(8)), model(images(8)), rtol=1e-4, atol=1e-5)


def test_the_dtype_policy_of_the_process_changes_nothing() -> None:
    model = network([layers.Normalization(**NORMALISATION)], layers.Conv2D(5, 3))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        result = image_scales.folded(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert_same(model, result)


def test_kernels_that_would_become_too_small_stay() -> None:
    model = network([layers.Rescaling(1e-6)], layers.Conv2D(5, 3))
    assert image_scales.folded(model) is model


SHARED = layers.Conv2D(5, 3)
OTHERS = {
    "pooling": lambda: network([layers.Rescaling(1 / 255)], layers.AveragePooling2D(2)),
    "pooling too": lambda: network([layers.Rescaling(1 / 255)], layers.Conv2D(5, 3), layers.MaxPooling2D(2)),
    "a shared convolution": lambda: network([layers.Rescaling(1 / 255)], SHARED, SHARED),
    "scales that differ": lambda: network([layers.Rescaling([0.1, 0.1, 0.9])], layers.Conv2D(5, 3)),
    "nothing but a scale of zero": lambda: network([layers.Rescaling(0.0, offset=1.0)], layers.Conv2D(5, 3)),
    "a scale of zero": lambda: network([layers.Rescaling([0.1, 0.0, 0.1])], layers.Conv2D(5, 3)),
    "the inverse": lambda: network([layers.Normalization(**NORMALISATION, invert=True)], layers.Conv2D(5, 3)),
    "rows": lambda: network([layers.Normalization(axis=1, mean=[1.0] * 8, variance=[2.0] * 8)], layers.Conv2D(5, 3)),
    "no scale": lambda: network([layers.Rescaling(1.0, offset=-1.0)], layers.Conv2D(5, 3)),
    "pixels too": lambda: network([layers.Rescaling(1 / 255)], layers.Conv2D(5, 3), pixels=True),
    "no preprocessing": lambda: network([], layers.Conv2D(5, 3)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_networks_of_other_kinds_stay_as_they_are(kind: str) -> None:
    model = OTHERS[kind]()
    assert image_scales.folded(model) is model


def onnx_constants(path: Path) -> list[np.ndarray]:
    import onnx

    return [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]


def openvino_constants(path: Path) -> list[np.ndarray]:
    import openvino

    operations = openvino.Core().read_model(path).get_ops()
    return [each.get_data() for each in operations if each.get_type_name() == "Constant"]


def litert_constants(path: Path) -> list[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    details = [each for each in interpreter.get_tensor_details() if each["dtype"] == np.float32]
    return [interpreter.get_tensor(each["index"]) for each in details]


READERS = {"onnx-int8": onnx_constants, "openvino-int8": openvino_constants, "litert-int8": litert_constants}
SUFFIXES = {"onnx-int8": ".onnx", "openvino-int8": ".xml", "litert-int8": ".tflite"}


@pytest.mark.parametrize("target", READERS)
def test_the_first_kernel_can_stay_in_float32(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if obstacle := targets.TARGETS[target].obstacle():
        pytest.skip(obstacle)
    lost = iter([0.5] + 4 * [0.0])  # with every layer in 8 bits, and with the most sensitive one in float32
    monkeypatch.setattr(quantizing.Files, "accuracies", lambda self, split: (1.0 - next(lost), 1.0))
    monkeypatch.setattr(sensitivity, "signal_to_noise", lambda *_: {"stem": 10.0, "wide": 20.0, "classes": 30.0})
    path = tmp_path / f"a{SUFFIXES[target]}"
    assert pbd.quantize(classifier(), data(classifier()), path, target, max_drop=0.1).kept_float == ("stem",)
    constants = [each for each in READERS[target](path) if each.dtype == np.float32]
    assert any(sorted(each.shape) == [3, 3, 3, 16] for each in constants)
