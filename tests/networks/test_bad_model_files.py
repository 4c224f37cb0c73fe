"""Model files that hold no whole model, bad weights, and files that are damaged at random."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pbd.config import TeacherConfig
from pbd.pipeline import built_in
from tests.helpers.cluster import PATIENCE_S
from tests.helpers.damaged_files import edited, fill, link_inside, truncated
from tests.helpers.refused_runs import Files, refusal


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


Content = tuple[str, Callable[[bytes], bytes], str]
CONTENTS: dict[str, Content] = {
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
    "no_config.h5": ("h5", lambda whole: edited(whole, lambda file: file.attrs.pop("model_config")), "config"),
    "no_weights.h5": ("h5", lambda whole: edited(whole, lambda file: file.pop("model_weights")), "must be a whole"),
}
TRAPS: dict[str, Content] = {
    "lengthened.h5": ("h5", lengthened, "memory allocation failed"),
    "endless.h5": ("h5", endless, "takes longer than its size explains"),
}
"""Files whose check would take all memory, or never end, without the limits of its process."""


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_holds_no_whole_model(name: str, light_checks: None, good: Files, tmp_path: Path) -> None:
    refuse(name, CONTENTS[name], good, tmp_path)


@pytest.mark.parametrize("name", TRAPS)
def test_a_file_whose_check_is_stopped(name: str, good: Files, tmp_path: Path) -> None:
    refuse(name, TRAPS[name], good, tmp_path)


def refuse(name: str, content: Content, good: Files, tmp_path: Path) -> None:
    source, change, words = content
    (tmp_path / name).write_bytes(change(good[source].read_bytes()))
    error = refusal(tmp_path / "run", teacher=str(tmp_path / name), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert words in str(error)
    assert name in str(error)


def test_weights_that_memory_has_no_room_for(
    light_checks: None, good: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbd.system.memory.free_host_memory", lambda: 10_000)
    error = refusal(tmp_path / "run", teacher=str(good["keras"]), dataset=str(good["npz"]))
    assert error.exit_code == 65
    assert "of the 10,000 that are free" in str(error)


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "NaN": lambda whole: edited(whole, fill(np.nan)),
    "a link": lambda whole: edited(whole, link_inside),
    "cut off": truncated,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_bad_weights_for_a_built_in_teacher(kind: str, light_checks: None, good: Files, tmp_path: Path) -> None:
    whole = tmp_path / "whole.weights.h5"
    built_in.build(TeacherConfig(), (12, 12, 3), 4, seed=0).save_weights(whole)
    (tmp_path / "bad.weights.h5").write_bytes(WEIGHTS[kind](whole.read_bytes()))
    weights = str(tmp_path / "bad.weights.h5")
    assert refusal(tmp_path / "run", teacher_weights=weights, dataset=str(good["npz"])).exit_code == 65


@pytest.mark.parametrize("cases", [20])
def test_a_file_damaged_at_random_is_loaded_or_refused(cases: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.fuzz", "0", str(cases), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S + 2 * cases)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["refused"] > cases / 2
    assert sum(outcomes.values()) == cases
