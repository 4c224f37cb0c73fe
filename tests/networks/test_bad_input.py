"""Bad data, settings and layers: one line with the remedy, the right exit code, nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.errors import PbdError
from tests.helpers.refused_runs import IMAGES, Files, Twice, arrays, classifier, refusal

pytestmark = pytest.mark.usefixtures("light_checks")
BAD_DATA: dict[str, tuple[dict[str, Any], int, str]] = {
    "images of another shape": ({"x_train": IMAGES[:, :10], "x_test": IMAGES[:32, :10]}, 65, "--image-size 12"),
    "no images": ({"x_train": None, "y_train": None}, 65, "Add x_train"),
    "none of them": ({"x_train": IMAGES[:0], "y_train": np.arange(0)}, 65, "must hold images"),
    "fewer than a batch": ({"x_train": IMAGES[:9], "y_train": np.arange(9) % 4}, 65, "at least one batch"),
    "negative labels": ({"y_train": np.arange(96) % 4 - 1}, 65, "must count from 0"),
    "more classes than outputs": ({"y_train": np.arange(96) % 5}, 65, "an output for each class"),
    "NaN": ({"x_train": np.where(IMAGES > 250, np.nan, IMAGES)}, 65, "finite numbers"),
    "pickled objects": ({"y_train": np.array([{}] * 96)}, 65, "no pickled objects"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data(kind: str, good: Files, tmp_path: Path) -> None:
    changed, code, words = BAD_DATA[kind]
    np.savez(tmp_path / "bad.npz", **arrays(**changed))
    error = refusal(tmp_path / "run", teacher=str(good["keras"]), dataset=str(tmp_path / "bad.npz"))
    assert error.exit_code == code
    assert words in str(error)


def test_an_image_that_cannot_be_decoded_is_named(good: Files, tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "images" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{number}.png", IMAGES[number])
    whole = (tmp_path / "images" / "class1" / "5.png").read_bytes()
    (tmp_path / "images" / "class1" / "5.png").write_bytes(whole[:60])
    error = refusal(tmp_path / "run", teacher=str(good["keras"]), dataset=str(tmp_path / "images"))
    assert error.exit_code == 65
    assert "class1/5.png" in str(error)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], int, str]] = {
    "a missing model": ({"teacher": "absent.keras"}, 66, "no such file"),
    "a folder as a model": ({"teacher": "/tmp"}, 66, "a folder"),
    "a device as a model": ({"teacher": "/dev/zero"}, 66, "no such file"),
    "a model elsewhere": ({"teacher": "https://example.org/model.keras"}, 65, "must be a local file"),
    "a model in a bucket": ({"teacher": "gs://models/model.keras"}, 65, "must be a local file"),
    "an unknown teacher": ({"teacher": "VGG61"}, 2, "Did you mean 'VGG1"),
    "a missing dataset": ({"dataset": "absent.npz"}, 66, "must exist"),
    "an unknown dataset": ({"dataset": "digts"}, 66, "Did you mean 'digits'?"),
    "no layer left": ({"layers": ("^*",)}, 65, "layers"),
    "an unknown layer": ({"layers": ("secnd",)}, 2, "second"),
    "an unknown block": ({"block": "two_layers"}, 2, "Did you mean 'two_layer'?"),
    "an unknown scheduler": ({"scheduler": "wdf"}, 2, "Did you mean 'wfd'?"),
    "an unknown executor": ({"executor": "dusk"}, 2, "Did you mean 'dask'?"),
    "a threshold that is no number": ({"accuracy_threshold": float("nan")}, 2, "threshold"),
    "a threshold out of its range": ({"accuracy_threshold": 1.5}, 2, "threshold"),
}


@pytest.mark.parametrize("kind", BAD_SETTINGS)
def test_bad_settings(kind: str, good: Files, tmp_path: Path) -> None:
    changed, code, words = BAD_SETTINGS[kind]
    settings = {"teacher": str(good["keras"]), "dataset": str(good["npz"])} | changed
    error = refusal(tmp_path / "run", **settings)
    assert error.exit_code == code
    assert words in str(error)


def test_a_model_without_a_convolution_to_replace(good: Files, tmp_path: Path) -> None:
    inputs = keras.Input((12, 12, 3))
    path = tmp_path / "flat.keras"
    keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs))).save(path)
    error = refusal(tmp_path / "run", teacher=str(path), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "convolution" in str(error)


@pytest.mark.parametrize("layer", [Twice, lambda name: keras.layers.Activation(lambda x: x, name=name)])
def test_a_layer_that_no_other_process_could_make(
    layer: Callable[..., keras.Layer], good: Files, tmp_path: Path
) -> None:
    error = refusal(tmp_path / "run", model=classifier(layer(name="mine")), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "'mine'" in str(error)
    assert "register_keras_serializable" in str(error)


def test_labels_where_labels_are_needed(good: Files, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x_train=IMAGES)
    images = str(tmp_path / "images.npz")
    error = refusal(tmp_path / "run", teacher=str(good["keras"]), dataset=images, fine_tune_loss="cross_entropy")
    assert error.exit_code == 65
    assert "cross_entropy needs labels" in str(error)
    error = refusal(tmp_path / "run", dataset=images)
    assert error.exit_code == 65
    assert "--teacher FILE" in str(error)


def test_a_run_directory_that_is_a_file(good: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PbdError, match="Give another --run-dir") as caught:
        pbd.distill(isolate=False, run_dir=str(tmp_path / "file"), teacher=str(good["keras"]), dataset=str(good["npz"]))
    assert caught.value.exit_code == 73
    assert (tmp_path / "file").read_text() == "mine"
