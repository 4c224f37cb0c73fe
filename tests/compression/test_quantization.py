"""`pbd.quantize` with quantisation-aware training."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import cli
from pbd.compression import qat
from pbd.compression.settings import Training
from pbd.deploy import images, targets
from pbd.deploy.int8 import fake_quantization
from pbd.errors import UsageError

layers = keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3)).astype(np.uint8)
LABELS = np.arange(32) % 4
DATA = pbd.Data(
    train=(PIXELS, LABELS),
    validation=(PIXELS[:16], LABELS[:16]),
    test=(PIXELS[16:], LABELS[16:]),
    batch_size=16,
)


def teacher() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 128, -1.0)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(4)(x))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "later"}, "method"),
        ({"epochs": 0}, "epochs must be at least 1. Received: 0. Give 1, or method ptq."),
        ({"epochs": 2, "method": "ptq"}, "epochs is a setting of method qat. Received: epochs 2 with method ptq."),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite. Received: 0.0. Give 0.00001."),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"max_drop": "0.1"}, "max_drop must be of type float"),
        ({"calibration_images": 64.0}, "calibration_images must be of type int"),
        ({"data": "digits"}, "data must be a pbd.Data. Received: str"),
        ({"model": "teacher.keras"}, "a network must be a keras.Model. Received: str"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        pbd.quantize(**{"model": teacher(), "data": DATA, "path": tmp_path / "a.onnx", "method": "qat", **setting})
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("eager")
def test_training_approaches_the_logits_of_the_teacher_which_may_be_frozen() -> None:
    network, pixels = teacher(), PIXELS.astype(np.float32)
    network.trainable = False
    dataset = images.load(DATA, network, 0)
    settings = Training(epochs=10, learning_rate=1e-3)
    rough = qat.train(network, dataset, pixels, Training(1, 1e-12), qat.LocalFineTuning(dataset), limit=7)
    better = qat.train(network, dataset, pixels, settings, qat.LocalFineTuning(dataset), limit=7)
    expected = network.predict_on_batch(pixels)
    errors = [np.square(each.predict_on_batch(pixels) - expected).mean() for each in (rough, better)]
    assert errors[1] < 0.8 * errors[0]
    assert fake_quantization.ranges(rough) == fake_quantization.ranges(better)


def test_a_file_is_written_with_every_layer_in_integers_from_fewer_images_than_a_batch(tmp_path: Path) -> None:
    target = targets.TARGETS["onnx-int8"]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    path = tmp_path / "student.onnx"
    few = pbd.Data(train=(PIXELS[:9], LABELS[:9]), validation=DATA.validation, test=DATA.test, batch_size=16)
    result = pbd.quantize(teacher(), few, path, method="qat", epochs=1, calibration_images=9)
    assert (result.target, result.path, result.kept_float) == ("onnx-int8", path, ())
    assert result.size_bytes == path.stat().st_size
    assert result.agreement.same_class > 0.8
    assert [file.name for file in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.usefixtures("eager")
def test_the_command_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = targets.TARGETS["onnx-int8"]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    teacher().save(tmp_path / "model.keras")
    splits = {"train": PIXELS, "val": PIXELS[:16], "test": PIXELS[16:]}
    arrays = {f"x_{name}": pixels for name, pixels in splits.items()}
    arrays |= {f"y_{name}": LABELS[: len(pixels)] for name, pixels in splits.items()}
    np.savez(tmp_path / "images.npz", **arrays)
    command = ["quantize", str(tmp_path / "model.keras"), "--target", "onnx-int8", "--dataset"]
    assert cli.command([*command, str(tmp_path / "images.npz"), "--method", "qat", "--epochs", "1", "--json"]) == 0
    printed = capsys.readouterr()
    (file,) = json.loads(printed.out)
    assert "fine-tuning, epoch 1" in printed.err
    assert file["method"] in ("ptq", "qat")
    assert file["kept_float"] == []
    assert (tmp_path / "model_onnx_int8.onnx").stat().st_size == file["size_bytes"]


@pytest.mark.usefixtures("eager")
def test_training_that_loses_accuracy_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = targets.TARGETS["onnx-int8"]
    if target.obstacle():
        pytest.skip(str(target.obstacle()))
    train = qat.train

    def failing(*args: Any, **options: Any) -> keras.Model:
        network = train(*args, **options)
        kernel = network.layers[-1].layer.kernel
        kernel.assign(-kernel)
        return network

    monkeypatch.setattr(qat, "train", failing)
    network = teacher()
    classes = network.predict(PIXELS.astype(np.float32), verbose=0).argmax(-1)
    data = pbd.Data(train=(PIXELS, classes), validation=(PIXELS, classes), test=(PIXELS, classes), batch_size=16)
    result = pbd.quantize(network, data, tmp_path / "student.onnx", method="qat")
    assert result.method == "ptq"
    assert result.val_accuracy > 0.9
