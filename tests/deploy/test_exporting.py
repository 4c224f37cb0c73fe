"""Export: files compute what Keras computes, also in a process without pbd and Keras, and others are not written."""

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.deploy import exporting, portable, targets
from pbd.deploy import images as deployed_images
from pbd.deploy.exporting import Exported
from pbd.errors import BadInputError, CannotCreateError, EnvironmentMismatchError, MissingInputError, UsageError
from tests.deploy.small_networks import SHAPE, SIDE, classifier, data, images

FILES = {"onnx": "a.onnx", "openvino": "a.xml", "litert": "a.tflite", "keras": "a.keras", "saved_model": "a"}
HEADS = {"logits": 4, "softmax": 4, "softmax layer": 4, "sigmoid": 1}
READERS = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
y = session.run(None, {session.get_inputs()[0].name: x})[0]
""",
    "openvino": """
import openvino
y = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(path)
source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
interpreter.resize_tensor_input(source, x.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(source, x)
interpreter.invoke()
y = interpreter.get_tensor(result)
""",
}
"""How a program that has neither Keras nor pbd runs a file."""


def needs(target: str) -> None:
    obstacle = targets.TARGETS[target].obstacle()
    if obstacle:
        pytest.skip(obstacle)


CASES = [*(("onnx", head) for head in HEADS), *((target, "softmax") for target in FILES if target != "onnx")]


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[keras.Model, Exported]]:
    """Return a function that returns a network with this head and its file for a target, which is written once."""

    @functools.cache
    def export(target: str, head: str) -> tuple[keras.Model, Exported]:
        model, folder = classifier(head, HEADS[head]), tmp_path_factory.mktemp("exported")
        return model, pbd.export(model, folder / FILES[target], target, check=data(model))

    return export


@pytest.mark.parametrize(("target", "head"), CASES)
def test_a_file_computes_what_keras_computes(
    target: str, head: str, exported_once: Callable[[str, str], tuple[keras.Model, Exported]]
) -> None:
    needs(target)
    model, exported = exported_once(target, head)
    assert exported.agreement.difference < 1e-5
    assert exported.agreement.same_class == 1.0
    assert (exported.test_accuracy, exported.keras_test_accuracy) == (1.0, 1.0)
    assert exported.size_bytes > 20_000
    assert exporting.files_of(exported.path)
    run = targets.TARGETS[target].load(exported.path, 1)
    pixels = images(5, seed=9).astype("float32")
    for count in (1, 5, 2):  # any batch size, in any order
        np.testing.assert_allclose(run(pixels[:count]), model(pixels[:count]), rtol=1e-3, atol=1e-5)
    before = classifier(head, HEADS[head]).get_weights()
    for weight, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, now)


def test_the_network_is_scored_in_keras_once_for_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, scored = classifier(), list[Any]()
    accuracy = deployed_images.accuracy
    monkeypatch.setattr(deployed_images, "accuracy", lambda *args: scored.append(args[0]) or accuracy(*args))
    paths = {"saved_model": tmp_path / "saved", "keras": tmp_path / "a.keras"}
    exported = exporting.export_each(model, paths, check=data(model))
    assert [file.path for file in exported] == list(paths.values())
    assert len(scored) == 3
    assert {(file.test_accuracy, file.keras_test_accuracy) for file in exported} == {(1.0, 1.0)}


@pytest.mark.parametrize("target", READERS)
def test_files_are_run_without_keras_and_pbd(
    target: str, tmp_path: Path, exported_once: Callable[[str, str], tuple[keras.Model, Exported]]
) -> None:
    needs(target)
    model, exported = exported_once(target, "softmax")
    pixels, paths, limits = images(6, seed=9).astype("float32"), {"float32": str(exported.path)}, {"float32": 1e-4}
    if not targets.TARGETS[f"{target}-int8"].obstacle():
        paths["int8"], limits["int8"] = str(tmp_path / FILES[target]), 0.1
        pbd.quantize(model, data(model), paths["int8"], f"{target}-int8", max_drop=1.0, calibration_images=32)
    np.save(tmp_path / "x.npy", pixels)
    program = f"""
import sys
import numpy as np
x, outputs = np.load("x.npy"), {{}}
for name, path in {paths}.items():
{textwrap.indent(READERS[target], "    ")}
    outputs[name] = y
np.savez("y.npz", **outputs)
assert not {{"pbd", "keras", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    outputs, expected = np.load(tmp_path / "y.npz"), np.asarray(model(pixels))
    for name, limit in limits.items():
        assert np.abs(outputs[name] - expected).max() <= limit * np.abs(expected).max(), name


def test_the_size_of_a_file_is_its_own_beside_files_of_other_formats(tmp_path: Path) -> None:
    """All formats use the stem of the model; the weights of OpenVINO belong to its .xml file alone."""
    sizes = {".xml": 1, ".bin": 10, ".onnx": 100, ".trtexec.sh": 1_000, ".tflite": 10_000, ".keras": 100_000}
    for suffix, size in sizes.items():
        (tmp_path / f"student{suffix}").write_bytes(b"0" * size)
    expected = {".xml": 11, ".onnx": 1_100, ".tflite": 10_000, ".keras": 100_000}
    assert {suffix: exporting.size_of(tmp_path / f"student{suffix}") for suffix in expected} == expected


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_probabilities_that_are_nearly_uniform_agree(head: str, tmp_path: Path) -> None:
    """As those of a network without training: their logits are known to 1e-6, which is much of the largest."""
    needs("onnx")
    model = classifier(head, classes=HEADS[head])
    layer = model.get_layer("classes")
    layer.set_weights([1e-5 * layer.get_weights()[0], np.zeros(HEADS[head])])
    assert pbd.export(model, tmp_path / "a.onnx").agreement.difference < 1e-4


def _convolutions(*layers: Any, dtype: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, dtype=dtype)
    x = keras.layers.Conv2D(8, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def _nested() -> keras.Model:
    inputs = keras.Input((SIDE, SIDE, 8))
    outputs = keras.layers.Normalization(mean=np.linspace(-0.1, 0.1, 8), variance=np.linspace(0.5, 2.0, 8))(inputs)
    return keras.Model(inputs, outputs)


L = keras.layers
UNUSUAL = {
    "convolutions of bytes": lambda: _convolutions(
        L.Conv2D(16, 3, groups=8, use_bias=False, padding="same"),  # one channel each
        L.Conv2D(12, 3, groups=2, strides=2, activation="relu"),
        L.DepthwiseConv2D(3, depth_multiplier=2),
        L.Conv2D(4, 1),
        dtype="uint8",
    ),
    "other layers": lambda: _convolutions(
        _nested(),
        L.RandomFlip(),
        L.RandomRotation(0.1),
        L.Dropout(0.5),
        L.GaussianNoise(1),
        L.LayerNormalization(),
        L.Conv2D(8, 3, activation="gelu"),
        L.GroupNormalization(4),
        L.LeakyReLU(0.1),
        L.Activation("silu"),
        L.PReLU(),
        L.Activation("mish"),
    ),
}


@pytest.mark.parametrize("target", ["onnx", "openvino", "litert"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_networks_are_exported(kind: str, target: str, tmp_path: Path) -> None:
    needs(target)
    exported = pbd.export(UNUSUAL[kind](), tmp_path / FILES[target], target)
    assert exported.agreement.difference < 1e-4
    assert exported.checked_on == "random images"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_half_precision_is_exported_in_float32(policy: str, tmp_path: Path) -> None:
    needs("onnx")
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input(SHAPE)
        x = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    assert pbd.export(model, tmp_path / "a.onnx").agreement.difference < 1e-5


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnx")
    runtime = targets.TARGETS["onnx"].runtime
    honest = type(runtime).load

    def wrong(self: Any, path: Path, threads: int) -> Any:
        run = honest(self, path, threads)
        return lambda pixels: run(pixels) * 1.001

    monkeypatch.setattr(type(runtime), "load", wrong)
    (tmp_path / "a.onnx").write_bytes(b"earlier")
    with pytest.raises(
        BadInputError, match=r"to 0\.0001 of the largest logit\. Received: 0\.001\. Nothing was written"
    ):
        pbd.export(classifier(), tmp_path / "a.onnx")
    with pytest.raises(BadInputError, match="Nothing was written"):
        exporting.export_each(classifier(), {"keras": tmp_path / "a.keras", "onnx": tmp_path / "a.onnx"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_bytes() == b"earlier"


def test_an_export_replaces_an_earlier_one(tmp_path: Path) -> None:
    needs("openvino")
    model = classifier()
    (tmp_path / "a").mkdir()
    for earlier in ("a/saved_model.pb", "a/earlier", "a.xml", "a.bin"):
        (tmp_path / earlier).write_bytes(b"earlier")
    for target in ("saved_model", "openvino"):
        path = tmp_path / FILES[target]
        pbd.export(model, path, target)
        pixels = images(2).astype("float32")
        np.testing.assert_allclose(targets.TARGETS[target].load(path, 1)(pixels), model(pixels), rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.bin", "a.xml"]
    assert not (tmp_path / "a" / "earlier").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a.onx", None), UsageError, r"suffix of the file must be one of .*\.onnx.* Give a --target"),
        (("a.onnx", "onx"), UsageError, "unknown target. Received: 'onx'. Did you mean 'onnx'?"),
        (("a.onnx", "onnx-int8"), UsageError, "Use quantize for 8-bit integers"),
        (("nowhere/a.onnx", None), MissingInputError, "Create the folder"),
        (("a.keras", "keras-gpu"), EnvironmentMismatchError, "keras-gpu needs a GPU"),
        (("a.xml", "onnx"), UsageError, "the file of onnx must end in .onnx"),
        (("a[b]", "saved_model"), UsageError, "TensorFlow cannot read a SavedModel"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: tuple[str, str | None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    needs("onnx")
    path, target = arguments
    with pytest.raises(error, match=message) as caught:
        pbd.export(classifier(), tmp_path / path, target)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"must have the shape \(n, \*\(8, 8, 3\)\)"):
        pbd.export(classifier(), tmp_path / "a.keras", check=np.zeros((2, 9, 9, 3)))


@pytest.mark.parametrize("check", ["digits", (images(4), np.zeros(4)), {"x": 1}, 5])
def test_what_is_neither_data_nor_images_is_refused(check: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"check must be a pbd.Data, or images. Received: {type(check).__name__}"):
        pbd.export(classifier(), tmp_path / "a.keras", check=check)


def test_a_path_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a network must be a keras.Model. Received: str"):
        pbd.export("teacher.keras", tmp_path / "a.keras")


def flexible(activation: str = "relu") -> keras.Model:
    """Return a network for images of any size."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation=activation)(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_network_for_images_of_any_size_is_checked_on_those_that_are_given(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="the size of the images must be known"):
        pbd.export(flexible(), tmp_path / "a.keras")
    assert pbd.export(flexible(), tmp_path / "a.keras", check=images(4)).checked_on == "images"


def test_a_file_that_its_runtime_refuses_is_named_in_one_line(tmp_path: Path) -> None:
    """The converter writes operations that ONNX does not have."""
    needs("onnx")
    with pytest.raises(BadInputError, match=r"the onnx file cannot be run here: .* Export to another target") as caught:
        pbd.export(flexible("celu"), tmp_path / "a.onnx", check=images(4))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_cannot_be_recreated_is_refused_in_one_line(tmp_path: Path) -> None:
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(keras.layers.Lambda(lambda pixels: pixels / 255)(inputs))
    with pytest.raises(BadInputError, match="replace a Lambda"):
        pbd.export(keras.Model(inputs, keras.layers.Dense(2)(x)), tmp_path / "a.keras")


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(type(targets.TARGETS["litert"].runtime), "packages", ("tensorflow", "no_such_package"))
    with pytest.raises(EnvironmentMismatchError, match=r"litert needs no_such_package: pip install 'pbd\[litert\]'"):
        pbd.export(classifier(), tmp_path / "a.tflite")


def test_a_folder_that_is_no_saved_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    with pytest.raises(CannotCreateError, match="only a SavedModel is replaced"):
        pbd.export(classifier(), tmp_path / "run", "saved_model")
    assert (tmp_path / "run" / "report.json").read_text() == "{}"


@pytest.mark.parametrize("groups", [2, 4])
def test_a_grouped_convolution_that_is_called_twice_is_exported(groups: int) -> None:
    x = inputs = keras.Input((8, 8, 4))
    layer = keras.layers.Conv2D(4, 3, padding="same", groups=groups, activation="relu")
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(layer(layer(x))))
    model, pixels = keras.Model(inputs, outputs), np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(portable.portable(model)(pixels), model(pixels), rtol=1e-4, atol=1e-6)
