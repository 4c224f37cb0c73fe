"""8-bit integers after training: accuracy, layers that stay in float32, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import cli
from pbd.deploy import exporting, portable, targets
from pbd.deploy.int8 import quantizing, sensitivity
from pbd.deploy.int8.quantizing import Quantized
from pbd.deploy.runtimes import litert_files
from pbd.errors import BadInputError, PbdError
from pbd.networks import graph
from pbd.system import processor
from tests.deploy.small_networks import classifier, data, images

TARGETS = ("onnx-int8", "openvino-int8", "litert-int8")
SUFFIXES = {"onnx-int8": ".onnx", "openvino-int8": ".xml", "litert-int8": ".tflite"}
NOT_COMPACT = "not_compact.tflite"
"""The file of LiteRT before it is made compact, beside that of the fixture `quantized`."""


def needs(target: str) -> None:
    obstacle = targets.TARGETS[target].obstacle()
    if obstacle:
        pytest.skip(obstacle)


def fragile() -> keras.Model:
    """A network whose layer `wide` loses its small channels if it has one scale for the activations."""
    model = classifier()
    stem = model.get_layer("stem")
    kernel, bias = stem.get_weights()
    gains = np.where(np.arange(16) < 1, 1000.0, 1.0)
    stem.set_weights([kernel * gains, bias])
    wide = model.get_layer("wide")
    wide.set_weights([wide.get_weights()[0] / gains[:, None]])
    return model


@pytest.fixture(scope="module", params=TARGETS)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """A network that loses little, in 8-bit integers."""
    target, model = request.param, classifier()
    needs(target)
    folder, compact = tmp_path_factory.mktemp("8 bits"), litert_files.compact

    def copy_and_compact(path: Path) -> None:
        shutil.copy(path, folder / NOT_COMPACT)
        compact(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert_files, "compact", copy_and_compact)
        return pbd.quantize(model, data(model), folder / f"a{SUFFIXES[target]}", max_drop=0.2)


def test_a_network_keeps_its_accuracy_in_8_bits(quantized: Quantized, tmp_path: Path) -> None:
    target = targets.TARGETS[quantized.target]
    assert quantized.path.suffix == SUFFIXES[target.name]
    if target.name != "openvino-int8" or processor.has_int8_dot_products():  # else sums may overflow in 16 bits
        assert quantized.kept_float == ()
    assert quantized.float_val_accuracy == quantized.float_test_accuracy == 1.0
    assert quantized.val_accuracy >= 0.8
    assert quantized.test_accuracy >= 0.8
    assert 1e-5 < quantized.agreement.difference < 0.1, "8 bits are not float32"
    float32 = tmp_path / f"b{target.runtime.suffix}"
    exporting.write(graph.flatten(classifier()), float32, targets.TARGETS[target.runtime.name])
    assert quantized.size_bytes < exporting.size_of(float32)


@pytest.mark.parametrize("quantized", ["onnx-int8"], indirect=True)  # which layers stay is chosen alike for all
def test_sensitive_layers_stay_in_float32(quantized: Quantized, tmp_path: Path) -> None:
    model, limit = fragile(), 0.05
    path = tmp_path / quantized.path.name
    mixed = pbd.quantize(model, data(model), path, max_drop=limit)
    assert mixed.kept_float, "the network must suffer"
    assert mixed.float_val_accuracy - mixed.val_accuracy <= limit
    ratios = [mixed.signal_to_noise_db[name] for name in mixed.kept_float]
    assert ratios == sorted(mixed.signal_to_noise_db.values())[: len(ratios)]
    assert mixed.size_bytes > quantized.size_bytes, "the other network has the same layers, all in 8 bits"


@pytest.mark.parametrize("quantized", ["litert-int8"], indirect=True)
def test_a_compact_file_of_litert_computes_the_same(quantized: Quantized) -> None:
    before, target = quantized.path.with_name(NOT_COMPACT), targets.TARGETS["litert-int8"]
    pixels = images(8).astype(np.float32)
    assert quantized.size_bytes < 0.9 * before.stat().st_size
    outputs, expected = (target.load(path, 1)(pixels) for path in (quantized.path, before))
    assert np.array_equal(outputs, expected)

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(quantized.path))
    assert all(each["name"] for each in (*interpreter.get_input_details(), *interpreter.get_output_details()))
    ((_, tensors),) = interpreter.get_signature_list().items()
    assert tensors["inputs"] == ["image"]


def test_the_file_has_the_fewest_layers_in_float32_that_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever numbers are tried, the file is that of the last one, which is not written twice in a row."""
    needs("onnx-int8")
    ratios, written, enough = {name: float(number) for number, name in enumerate("abcde")}, list[int](), 0
    inputs = keras.Input((2, 2, 3))
    x = keras.layers.Flatten()(inputs)
    for name in ratios:
        x = keras.layers.Dense(4, name=name)(x)
    network, target = keras.Model(inputs, x), targets.TARGETS["onnx-int8"]
    files = quantizing.Files(network, None, target, tmp_path / "a.onnx", tmp_path / "b.onnx")
    monkeypatch.setattr(exporting, "write", lambda *_: None)
    monkeypatch.setattr(exporting, "checked", lambda *_: None)
    monkeypatch.setattr(quantizing.images, "first", lambda *_: np.zeros((1, 2, 2, 3)))
    monkeypatch.setattr(sensitivity, "signal_to_noise", lambda *_: ratios)
    monkeypatch.setattr(files, "_quantize", lambda _, layers: written.append(len(layers)))
    monkeypatch.setattr(files, "accuracies", lambda _: (0.9 if written[-1] >= enough else 0.5, 0.9))
    for enough in range(6):
        kept_float, _ = files.write(max_drop=0.1)
        assert kept_float == tuple("abcde"[:enough])
        assert written[-1] == enough
        assert written[-2:] != [enough, enough]


@pytest.mark.parametrize(("target", "has_ceiling"), [("onnx-int8", False), *((target, True) for target in TARGETS)])
def test_outputs_that_are_clipped_stay_so(target: str, has_ceiling: bool, tmp_path: Path) -> None:
    needs(target)
    plain = classifier()
    largest = float(np.max(plain(images(48).astype("float32"))))
    model = keras.Model(plain.inputs, keras.layers.ReLU(largest / 2 if has_ceiling else None)(plain.outputs[0]))
    path = tmp_path / f"a{SUFFIXES[target]}"
    pbd.quantize(model, data(plain), path, max_drop=1.0)
    pixels = images(48, seed=2).astype("float32")
    outputs, expected = targets.TARGETS[target].load(path, 1)(pixels), np.asarray(model(pixels))
    assert outputs.min() == expected.min() == 0
    assert outputs.max() <= expected.max() * (1.01 if has_ceiling else 1.2)
    assert np.abs(outputs - expected).mean() < 0.05 * expected.max()


def test_the_layer_that_suffers_most_has_the_lowest_ratio() -> None:
    network = portable.portable(fragile(), int8=True)
    ratios = sensitivity.signal_to_noise(network, images(16).astype("float32"))
    assert set(ratios) == {"stem", "wide", "classes"}
    assert min(ratios, key=lambda name: ratios[name]) != "classes"
    healthy = sensitivity.signal_to_noise(portable.portable(classifier()), images(16).astype("float32"))
    assert min(healthy.values()) > 25
    assert min(ratios.values()) < min(healthy.values()) - 10


def test_kernels_are_rounded_per_output_channel() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)) * np.logspace(0, 4, 5)
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    assert (np.abs(sensitivity.round_kernel(kernel) - kernel) <= step / 2 * 1.001).all()
    depthwise = np.random.default_rng(0).normal(size=(3, 3, 4, 1)) * np.logspace(0, 4, 4)[:, None]
    step = np.abs(depthwise).max(axis=(0, 1, 3), keepdims=True) / 127
    assert (np.abs(sensitivity.round_kernel(depthwise) - depthwise) <= step / 2 * 1.001).all()


def test_without_labels_the_classes_of_the_float32_network_count(tmp_path: Path) -> None:
    needs("onnx-int8")
    model = classifier()
    quantized = pbd.quantize(model, data(model, labels=False), tmp_path / "a.onnx", max_drop=0.5)
    assert quantized.float_val_accuracy == 1.0
    assert 0.5 <= quantized.val_accuracy <= 1.0


def test_too_much_loss_is_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnx-int8")
    monkeypatch.setattr(quantizing.Files, "_quantize", lambda self, *_: self.quantized.write_bytes(b"8 bits"))
    monkeypatch.setattr(quantizing.Files, "accuracies", lambda self, split: (0.5, 0.9))
    with pytest.raises(
        BadInputError, match=r"may lose 0\.1 of validation accuracy\. Received: 0\.4000, with all layers"
    ):
        pbd.quantize(classifier(), data(classifier()), tmp_path / "a.onnx", max_drop=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_converted_wrongly_is_not_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnx-int8")
    runtime = type(targets.TARGETS["onnx"].runtime)
    honest = runtime.export

    def wrong(self: Any, network: keras.Model, path: Path) -> None:
        doubled = keras.models.clone_model(network)
        doubled.set_weights([2 * weight for weight in network.get_weights()])
        honest(self, doubled, path)

    monkeypatch.setattr(runtime, "export", wrong)
    with pytest.raises(BadInputError, match="the onnx file must compute what the model computes"):
        pbd.quantize(classifier(), data(classifier()), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "onnx"}, "must have 8-bit integers. Received: 'onnx'. Choose from"),
        ({"target": "onnx_int8"}, "Did you mean 'onnx-int8'"),
        ({"max_drop": -0.1}, r"max_drop must lie in \[0, 1\]"),
        ({"calibration_images": 0}, "calibration_images must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(PbdError, match=message) as caught:
        pbd.quantize(classifier(), data(classifier()), tmp_path / "a.onnx", **settings)
    assert "\n" not in str(caught.value)


def test_the_command_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("onnx-int8")
    model = classifier()
    model.save(tmp_path / "model.keras")
    command = ["quantize", str(tmp_path / "model.keras"), "--target", "onnx-int8"]
    assert cli.command(command) == 2
    assert "Received: none. Give --dataset." in capsys.readouterr().err
    train, test = data(model).train, data(model).test
    np.savez(tmp_path / "images.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    command += ["--dataset", str(tmp_path / "images.npz"), "--max-drop", "0.5"]
    assert cli.command([*command, "--output", str(tmp_path / "named.onnx")]) == 0
    assert "onnx-int8" in capsys.readouterr().out
    assert (tmp_path / "named.onnx").is_file()
