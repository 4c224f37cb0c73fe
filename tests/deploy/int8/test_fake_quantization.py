"""Fake quantisation: rounding, ranges and gradients; the exported files compute the same in 8-bit integers."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd.deploy import agreement, portable, targets
from pbd.deploy.int8 import fake_quantization, integer_form
from pbd.deploy.int8.fake_quantization import FakeQuantization, FakeQuantize, RoundedKernels
from pbd.deploy.runtimes.base import KERNEL_LIMIT

layers = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3)).astype(np.float32)


def network(activation: str = "silu") -> keras.Model:
    """Return a network with every kind of operation that is rounded; its weights are random.

    Args:
        activation: of one layer. LiteRT rounds SiLU in the middle, too.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.Rescaling(1 / 64, -2.0)(inputs))
    y = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer="he_normal")(x)
    y = layers.Conv2D(8, 1, activation=activation)(layers.BatchNormalization()(y))
    x = layers.ReLU()(layers.Add()([x, layers.SeparableConv2D(8, 3, padding="same", activation="relu")(y)]))
    x = layers.Concatenate()([layers.MaxPooling2D()(x), layers.AveragePooling2D(1, 2)(x)])
    x = layers.Flatten()(layers.Conv2D(8, 3, strides=2, padding="same")(layers.Dropout(0.5)(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.Dense(16, activation="relu")(x)))


def calibrated(activation: str = "silu", limit: int = KERNEL_LIMIT, images: np.ndarray = IMAGES) -> keras.Model:
    form = portable.portable(network(activation), int8=True)
    return FakeQuantization.calibrated(form, images, limit).applied(form)


shared = functools.cache(calibrated)
"""For tests that leave the network as it is."""


def of_kind(model: keras.Model, kind: type) -> list:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_activations_take_256_values_and_zero_is_one_of_them() -> None:
    layer = FakeQuantize("rounding")
    layer.set_range(-1.0, 2.0)
    values = keras.ops.convert_to_numpy(layer(np.linspace(-3, 3, 10_001, dtype=np.float32)))
    assert len(np.unique(values)) == 256
    assert 0.0 in values
    assert np.abs(np.array([values.min(), values.max()]) - [-1, 2]).max() < 3 / 255


def test_activations_that_are_always_zero_stay_zero() -> None:
    layer = FakeQuantize("rounding")
    layer.set_range(0.0, 0.0)
    assert not keras.ops.convert_to_numpy(layer(np.zeros(3, np.float32))).any()


@pytest.mark.parametrize("layer", [layers.Conv2D(5, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)])
def test_kernels_have_a_scale_for_each_output_channel(layer: keras.Layer) -> None:
    layer.build((None, 8, 8, 4))
    layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    rounded = keras.ops.convert_to_numpy(RoundedKernels(layer, FakeQuantize("source"), 127).rounded_kernel())
    axes = (0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (0, 1, 2)
    scales = np.abs(kernel).max(axis=axes, keepdims=True) / 127
    assert np.abs(rounded / scales - np.rint(kernel / scales)).max() < 1e-3


def test_ranges_are_the_extremes_in_float32() -> None:
    rounded = shared()
    first = next(iter(fake_quantization.ranges(rounded).values()))
    pixels = IMAGES / 64 - 2
    assert np.allclose(first, (pixels.min(), pixels.max()), atol=np.ptp(pixels) / 255)
    assert all(low <= 0 <= high for low, high in fake_quantization.ranges(rounded).values())


def test_ranges_do_not_depend_on_the_batches() -> None:
    assert fake_quantization.ranges(shared()) == fake_quantization.ranges(calibrated(images=IMAGES[::-1]))


def test_the_network_nearly_computes_what_the_one_in_float32_computes() -> None:
    plain, rounded = network().predict_on_batch(IMAGES), shared().predict_on_batch(IMAGES)
    assert 0 < np.abs(plain - rounded).max() < 0.1


@pytest.mark.usefixtures("eager")
def test_gradients_reach_all_kernels_and_leave_the_ranges() -> None:
    rounded = calibrated()
    before = [keras.ops.convert_to_numpy(layer.layer.kernel) for layer in of_kind(rounded, RoundedKernels)]
    ranges = fake_quantization.ranges(rounded)
    rounded.compile(keras.optimizers.SGD(0.1), "mse")
    rounded.train_on_batch(IMAGES, np.eye(10)[np.arange(96) % 10])
    after = [keras.ops.convert_to_numpy(layer.layer.kernel) for layer in of_kind(rounded, RoundedKernels)]
    assert len(before) == 8
    assert all(np.abs(old - new).max() > 0 for old, new in zip(before, after, strict=True))
    assert fake_quantization.ranges(rounded) == ranges


def test_a_layer_that_is_called_twice_is_written_once_for_each_input() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", activation="relu", bias_initializer="ones", name="shared")
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(shared(shared(layers.Rescaling(1 / 64)(inputs)))))
    plain = portable.portable(keras.Model(inputs, outputs), int8=True)
    expected, count = plain.predict_on_batch(IMAGES[:8]), plain.count_params()
    rounded = FakeQuantization.calibrated(plain, IMAGES).applied(plain)
    written = integer_form.exportable(rounded)
    assert len(of_kind(written, layers.Conv2D)) == 2
    assert np.allclose(written(IMAGES[:8]), rounded(IMAGES[:8]), atol=1e-4)
    going_on = integer_form.exportable(rounded, rounds_activations=False)
    assert going_on.count_params() == count
    assert 0 < np.abs(going_on.predict_on_batch(IMAGES[:8]) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8", "litert-int8"])
def test_the_file_computes_what_the_network_computes(name: str, tmp_path: Path) -> None:
    target = targets.TARGETS[name]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    rounded = shared(activation="relu", limit=target.quantizer.trained_kernel_limit)
    path = tmp_path / f"network{target.runtime.suffix}"
    kernels = fake_quantization.rounded_kernels(rounded)
    target.quantizer.export_fake_quantized(integer_form.exportable(rounded), path, kernels)
    run = target.load(path, threads=1)
    expected = rounded.predict_on_batch(IMAGES)
    difference = np.abs(agreement.run_in_batches(run, IMAGES) - expected).mean()
    rounding = np.abs(np.asarray(network("relu")(IMAGES)) - expected).mean()
    # OpenVINO's low-precision transformations round a sum behind another sum differently.
    assert difference < (0.7 if name == "openvino-int8" else 0.05) * rounding
    assert np.abs(run(IMAGES[:1]) - expected[:1]).max() < 0.05


def test_the_onnx_file_holds_integers(tmp_path: Path) -> None:
    target = targets.TARGETS["onnx-int8"]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    onnx = pytest.importorskip("onnx", reason="the file is read with onnx")
    rounded = shared(limit=target.quantizer.trained_kernel_limit)
    path = tmp_path / "network.onnx"
    kernels = fake_quantization.rounded_kernels(rounded)
    target.quantizer.export_fake_quantized(integer_form.exportable(rounded), path, kernels)
    graph = onnx.load(path).graph
    kinds = [onnx.TensorProto.DataType.Name(each.data_type) for each in graph.initializer if len(each.dims) > 1]
    assert kinds.count("INT8") == len(kernels)
    assert "FLOAT" not in kinds
