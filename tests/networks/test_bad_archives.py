"""`.keras` archives that are broken or hostile: one line that names the file, and nothing of them is run or built."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from pbd.errors import PbdError
from pbd.networks import files
from tests.helpers.damaged_files import KERNEL, fill, in_config, in_weights, link_inside, repacked, with_part, without
from tests.helpers.refused_runs import IMAGES, MOST_BYTES, Files, Twice, classifier, refusal, resident

pytestmark = pytest.mark.usefixtures("light_checks")


def declare_much(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 3, 3, 40_000_000), "f4", chunks=(3, 3, 3, 64))


def link_outside(file: h5py.File) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/hostname", "kernel")


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
    before = resident()
    Twice()(keras.Input((12, 12, 3)))
    assert resident() - before < MOST_BYTES


def test_a_zip_bomb(good: Files, tmp_path: Path) -> None:
    zeros = with_part("model.weights.h5", bytes(300_000_000))
    repacked(good["keras"], tmp_path / "bomb.keras", zeros, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.keras").stat().st_size < 1e6
    error = refusal(tmp_path / "run", teacher=str(tmp_path / "bomb.keras"), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "would unpack to 300,000,000 bytes" in str(error)


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
