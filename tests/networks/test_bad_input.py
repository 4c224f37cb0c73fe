"""Every kind of bad input: one line with the remedy, the right exit code, nothing written, no code of others run."""

import io
import json
import re
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import pbd
from pbd.config import TeacherConfig
from pbd.errors import PbdError
from pbd.networks import files
from pbd.pipeline import built_in
from tests.helpers.cluster import PATIENCE_S

SLOWEST_S = 120
MOST_BYTES = 400e6
Files = dict[str, Path]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model in both formats, and images for it."""
    folder = tmp_path_factory.mktemp("good")
    model = classifier(keras.layers.Conv2D(8, 3, name="second"))
    files = {"keras": folder / "model.keras", "h5": folder / "model.h5", "npz": folder / "data.npz"}
    model.save(files["keras"])
    model.save(files["h5"])
    np.savez(files["npz"], **arrays())
    return files


def classifier(*layers: keras.Layer) -> keras.Model:
    """A classifier of 12x12 RGB images into four classes, with these layers in it."""
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    """Images and labels that suit the model, but for what is changed."""
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (96, 12, 12, 3), dtype=np.uint8), np.arange(96) % 4
    found = {"x_train": images, "y_train": labels, "x_test": images[:32], "y_test": labels[:32]} | changed
    return {name: value for name, value in found.items() if value is not None}


def refusal(run_dir: Path, **settings: Any) -> PbdError:
    """Return what a run of these settings is refused with; check how."""
    began, before = time.monotonic(), _resident()
    with pytest.raises(PbdError) as caught:
        pbd.distill(run_dir=str(run_dir), epochs=1, fine_tune_epochs=1, batch_size=16, isolate=False, **settings)
    assert time.monotonic() - began < SLOWEST_S
    assert _resident() - before < MOST_BYTES
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not run_dir.exists()
    return caught.value


def _resident() -> int:
    from pbd.system import memory

    return memory.peak_memory()


def repacked(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], packing: int = 0) -> None:
    """Copy a `.keras` file with its parts changed."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def edited(content: bytes, edit: Callable[[h5py.File], None]) -> bytes:
    """Return an HDF5 file with something changed in it."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        edit(file)
    return stream.getvalue()


def in_weights(edit: Callable[[h5py.File], None]) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        parts["model.weights.h5"] = edited(parts["model.weights.h5"], edit)

    return change


def in_config(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        assert old.encode() in parts["config.json"]
        parts["config.json"] = parts["config.json"].replace(old.encode(), new.encode())

    return change


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.pop(name) and None


def with_part(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.update({name: content})


KERNEL = "layers/conv2d/vars/0"


def fill(value: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[KERNEL][0, 0, 0, 0] = value

    return edit


def declare_much(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 40_000_000), "f4", chunks=(3, 3, 3, 64))


def link_outside(file: h5py.File) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/hostname", "kernel")


def link_inside(file: h5py.File) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/layers/conv2d/vars/1")


def store_outside(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 8), "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def go_round(file: h5py.File) -> None:
    file["layers/conv2d/round"] = file["layers"]
    del file["layers/conv2d/vars"]


def alias(file: h5py.File) -> None:
    file["layers/conv2d/vars/2"] = file[KERNEL]


def inflate(file: h5py.File) -> None:
    """Let a chunk of the kernel unpack to more than a gigabyte, whatever its shape."""
    packing = zlib.compressobj()
    first, each = (packing.compress(bytes(2**20)) + packing.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    last = b"\x03\0" + (1101 * 2**20 % 65521 << 16 | 1).to_bytes(4, "big")  # an empty block, and the sum of all zeros
    del file[KERNEL]
    kernel = file.create_dataset(KERNEL, (3, 3, 3, 8), "f4", chunks=(3, 3, 3, 8), compression="gzip")
    kernel.id.write_direct_chunk((0, 0, 0, 0), first + 1100 * each + last)


ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "no config": (without("config.json"), "has no config.json"),
    "no weights": (without("model.weights.h5"), "has no model.weights.h5"),
    "broken JSON": (with_part("config.json", b'{"module": '), "Expecting value"),
    "JSON nested deeply": (with_part("config.json", b'{"a":' * 200_000), "recursion"),
    "JSON of something else": (with_part("config.json", b"[1, 2]"), "must be a whole Keras model"),
    "shapes that disagree": (in_config('"filters": 8', '"filters": 6'), "must be a whole Keras model"),
    "an enormous layer": (in_config('"filters": 8', '"filters": 40000000'), "must be a whole Keras model"),
    "an enormous last layer": (in_config('"units": 4', '"units": 4000000000'), "must be a whole Keras model"),
    "enormous weights": (in_weights(declare_much), "would unpack to"),
    "weights that inflate": (in_weights(inflate), "filter returned failure"),
    "NaN": (in_weights(fill(np.nan)), "not finite"),
    "infinity": (in_weights(fill(np.inf)), "not finite"),
    "a link to another file": (in_weights(link_outside), "is a link"),
    "a link": (in_weights(link_inside), "is a link"),
    "weights in another file": (in_weights(store_outside), "stored outside of it"),
    "a folder within itself": (in_weights(go_round), "must be a whole Keras model"),
    "an unregistered layer": (in_config('"class_name": "Conv2D"', '"class_name": "Mine"'), "Mine"),
    "weights that stand for several": (in_weights(alias), "has several names"),
    "a constant of an enormous shape": (in_config("12, 12, 3", "1, 1, 250000000"), "250,000,000 values"),
    "a module to import": (in_config('"module": "keras.layers"', '"module": "antigravity"'), "must be a whole"),
    "a part outside of it": (with_part("../../outside", b"x"), "lies outside of it"),
    "a part at the root": (with_part("/etc/outside", b"x"), "lies outside of it"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_broken_or_hostile_archive(kind: str, good: Files, tmp_path: Path) -> None:
    change, words = ARCHIVES[kind]
    repacked(good["keras"], tmp_path / "bad.keras", change)
    error = refusal(tmp_path / "run", teacher=str(tmp_path / "bad.keras"), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert words in str(error)
    assert "bad.keras" in str(error)
    assert not (tmp_path.parent.parent / "outside").exists()


def test_what_was_refused_is_not_built_later(good: Files, tmp_path: Path) -> None:
    """Keras would create the variables of a model that it was told not to create at the next occasion."""
    repacked(good["keras"], tmp_path / "bad.keras", in_config('"filters": 8', '"filters": 40000000'))
    for _ in range(2):
        with pytest.raises(PbdError):
            files.load(str(tmp_path / "bad.keras"))
    before = _resident()
    Twice()(keras.Input((12, 12, 3)))
    assert _resident() - before < MOST_BYTES


def truncated(source: bytes) -> bytes:
    return source[: len(source) // 2]


def bit_flipped(source: bytes) -> bytes:
    at = source.index(b"HDF") + 3000
    return source[:at] + bytes([source[at] ^ 1]) + source[at + 1 :]


def empty_hdf5() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w"):
        pass
    return stream.getvalue()


def lengthened(source: bytes) -> bytes:
    """Say of a name that Keras reads that it has another 1.5 gigabytes."""
    length = 31337

    def rename(file: h5py.File) -> None:
        file["model_weights"].attrs.create("layer_names", ["x" * length], dtype=h5py.string_dtype())

    said = length.to_bytes(4, "little") + b"(?!\0)"  # where it is kept, zeros follow
    changed, count = re.subn(said, (length + 0x60000000).to_bytes(4, "little"), edited(source, rename))
    assert count == 1
    return changed


def endless(source: bytes) -> bytes:
    """Say of what is free after the last of the texts that it is empty, so that libhdf5 never gets beyond it."""
    last = b"x" * 64
    changed = edited(source, lambda file: file.attrs.create("last", last.decode(), dtype=h5py.string_dtype()))
    at = changed.index(last) + len(last) + 8
    return changed[:at] + bytes(8) + changed[at + 8 :]


CONTENTS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty.keras": ("keras", lambda _: b"", "empty, cut off"),
    "empty.h5": ("h5", lambda _: b"", "empty, cut off"),
    "truncated.keras": ("keras", truncated, "empty, cut off"),
    "truncated.h5": ("h5", truncated, "truncated file"),
    "text.keras": ("keras", lambda _: b"I am a text file,\nnot a model.\n", "of another format"),
    "text.h5": ("h5", lambda _: b"I am a text file,\nnot a model.\n", "of another format"),
    "noise.keras": ("keras", lambda _: np.random.default_rng(0).bytes(4096), "of another format"),
    "flipped.keras": ("keras", bit_flipped, "does not match its checksum"),
    "both.keras": ("keras", lambda whole: empty_hdf5() + whole, "of another format"),
    "wrong.name": ("keras", bytes, "must be a whole Keras model"),
    "lengthened.h5": ("h5", lengthened, "memory allocation failed"),
    "endless.h5": ("h5", endless, "takes longer than its size explains"),
    "no_config.h5": ("h5", lambda whole: edited(whole, lambda file: file.attrs.pop("model_config")), "config"),
    "no_weights.h5": ("h5", lambda whole: edited(whole, lambda file: file.pop("model_weights")), "must be a whole"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_holds_no_whole_model(name: str, good: Files, tmp_path: Path) -> None:
    source, change, words = CONTENTS[name]
    (tmp_path / name).write_bytes(change(good[source].read_bytes()))
    error = refusal(tmp_path / "run", teacher=str(tmp_path / name), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert words in str(error)
    assert name in str(error)


def test_a_zip_bomb(good: Files, tmp_path: Path) -> None:
    zeros = with_part("model.weights.h5", bytes(300_000_000))
    repacked(good["keras"], tmp_path / "bomb.keras", zeros, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.keras").stat().st_size < 1e6
    error = refusal(tmp_path / "run", teacher=str(tmp_path / "bomb.keras"), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "would unpack to 300,000,000 bytes" in str(error)


def test_weights_that_memory_has_no_room_for(good: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbd.system.memory.free_host_memory", lambda: 10_000)
    error = refusal(tmp_path / "run", teacher=str(good["keras"]), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "of the 10,000 that are free" in str(error)


def test_code_in_a_model_is_refused_and_not_run(good: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, bad = tmp_path / "run by the model", tmp_path / "code.keras"
    monkeypatch.chdir(tmp_path)

    layer = keras.layers.Lambda(lambda x: [open("run by the model", "w").close(), x][1], output_shape=(10, 10, 8))
    classifier(layer).save(bad)
    mark.unlink(missing_ok=True)
    error = refusal(tmp_path / "run", teacher=str(bad), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "ambda" in str(error)
    assert not mark.exists()
    keras.models.load_model(bad, safe_mode=False)(IMAGES[:1])
    assert mark.exists(), "it would have been run"


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "NaN": lambda whole: edited(whole, fill(np.nan)),
    "a link": lambda whole: edited(whole, link_inside),
    "cut off": truncated,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_bad_weights_for_a_built_in_teacher(kind: str, good: Files, tmp_path: Path) -> None:
    whole = tmp_path / "whole.weights.h5"
    built_in.build(TeacherConfig(), (12, 12, 3), 4, seed=0).save_weights(whole)
    (tmp_path / "bad.weights.h5").write_bytes(WEIGHTS[kind](whole.read_bytes()))
    weights = str(tmp_path / "bad.weights.h5")
    assert refusal(tmp_path / "run", teacher_weights=weights, dataset=str(good["npz"])).exit_code == 65


IMAGES = arrays()["x_train"]
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


class Twice(keras.layers.Layer):
    """A layer of the user's own, of which Keras was told nothing."""

    def call(self, x: Any) -> Any:
        return 2 * x


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


@pytest.mark.parametrize("cases", [40])
def test_a_file_damaged_at_random_is_loaded_or_refused(cases: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.fuzz", "0", str(cases), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S + 2 * cases)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["refused"] > cases / 2
    assert sum(outcomes.values()) == cases
