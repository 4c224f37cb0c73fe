"""The run directory: nothing half-written, nothing damaged believed, no run mixed with another."""

import dataclasses
import errno
import io
import json
import logging
import math
import os
import pickle
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from pbd.errors import CannotCreateError, CannotWriteError, CorruptStateError
from pbd.records import BlockKey, BlockResult
from pbd.run_dir import lock
from pbd.run_dir.archive import pack
from pbd.run_dir.journal import Journal, block_file_name
from tests.run_dir.conftest import IDENTITY

pytestmark = pytest.mark.fast

DESIGN = "two_layer"
ODD_NAMES = ["conv", "a/b", "a%2Fb", "../../up", "with space", "schönes Netz ☃", ".", "..", "", "x" * 400, "ü" * 100]


def key(layer: str = "conv") -> BlockKey:
    return BlockKey(layer, DESIGN)


def make_result(layer: str = "conv", **changes: Any) -> BlockResult:
    rng = np.random.default_rng(0)
    weights = {
        "sep/kernel:0": rng.normal(size=(3, 3, 4, 1)).astype("float32").T,
        "scale": np.float32(2.0) * np.ones(()),
        "empty": np.zeros((0, 3), "float16"),
    }
    result = BlockResult(
        layer,
        "trained",
        DESIGN,
        weights,
        loss_history=(0.5, 0.1),
        nmse_history=(0.9, 0.4, 0.1 + 0.2),
        nmse=0.1 + 0.2,
        val_accuracy=0.9,
        val_agreement=0.95,
        val_kl=0.01,
        worker=3,
        started_s=1.5,
        seconds=2.5,
    )
    return dataclasses.replace(result, **changes)


def assert_same(left: BlockResult, right: BlockResult) -> None:
    bare = [dataclasses.replace(result, weights={}) for result in (left, right)]
    assert bare[0] == bare[1]
    assert list(left.weights) == list(right.weights)
    for name, array in left.weights.items():
        np.testing.assert_array_equal(array, right.weights[name], strict=True)


def test_blocks_come_back_exactly_from_a_resumed_run(journal: Journal) -> None:
    journal.commit_block(make_result(nmse=np.float32(0.5), loss_history=[1.0, 0.5]))
    found = Journal.resume(str(journal.path), IDENTITY).committed_blocks()
    assert list(found) == [key()]
    assert_same(make_result(nmse=0.5, loss_history=(1.0, 0.5)), found[key()])


def test_a_block_is_committed_under_a_profiler_that_holds_on_to_frames(journal: Journal) -> None:
    """Dask's looks at a worker's frames every few milliseconds; whatever they name lives on until it lets go."""
    held: list[FrameType] = []
    result = make_result()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: held.append(frame))
    try:
        journal.commit_block(result)
    finally:
        sys.setprofile(before)
    assert_same(result, journal.committed_blocks()[key()])


def test_a_block_without_labels_that_diverged_in_its_last_epoch_comes_back(journal: Journal) -> None:
    """It was good before, so it counts; what it went through is kept with it."""
    journal.commit_block(make_result(val_accuracy=None, loss_history=(0.5, math.inf), nmse_history=(0.2, 0.1, 1e300)))
    found = journal.committed_blocks()[key()]
    assert_same(make_result(val_accuracy=None, loss_history=(0.5, math.inf), nmse_history=(0.2, 0.1, 1e300)), found)
    journal.commit_block(make_result(nmse_history=(0.1, math.nan)))
    assert math.isnan(journal.committed_blocks()[key()].nmse_history[1])


def test_any_layer_name_is_stored_inside_the_folder(journal: Journal) -> None:
    for name in ODD_NAMES:
        journal.commit_block(make_result(name))
    assert set(journal.committed_blocks()) == set(map(key, ODD_NAMES))
    assert len(list((journal.path / "blocks").iterdir())) == len(ODD_NAMES)
    assert sorted(entry.name for entry in journal.path.parent.iterdir()) == ["first"]


def test_only_trained_blocks_count(journal: Journal) -> None:
    journal.commit_block(make_result(status="failed", weights={}, error="loss is not finite", nmse=float("nan")))
    assert journal.committed_blocks() == {}
    journal.commit_block(make_result())
    assert list(journal.committed_blocks()) == [key()]


def test_one_block_is_found_without_reading_the_others(journal: Journal) -> None:
    journal.commit_block(make_result("conv1"))
    journal.commit_block(make_result("conv2"))
    journal.file("blocks/conv2@two_layer.npz").write_bytes(b"torn")
    assert journal.committed_block(key("conv1")).layer == "conv1"
    assert journal.committed_block(key("conv2")) is None
    assert journal.committed_block(key("conv3")) is None


def test_a_flipped_byte_is_noticed(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.commit_block(make_result())
    journal.commit_block(make_result("other"))
    path = journal.file(f"blocks/{block_file_name(key())}")
    intact, missing = path.read_bytes(), 0
    caplog.set_level(logging.WARNING)
    for position in range(0, len(intact), 3):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 0x11]) + intact[position + 1 :])
        caplog.clear()
        found = journal.committed_blocks()
        assert key("other") in found
        if key() in found:  # a time stamp of the archive, say: harmless only if the content is what was written
            assert_same(make_result(), found[key()])
        else:
            missing += 1
            assert path.name in caplog.text
    assert missing > len(intact) / 6


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"{}"])
def test_a_torn_block_is_trained_again(journal: Journal, damage: Any) -> None:
    journal.commit_block(make_result())
    path = journal.file("blocks/conv@two_layer.npz")
    path.write_bytes(damage(path.read_bytes()))
    assert journal.committed_blocks() == {}


def test_a_valid_block_under_another_layers_name_is_not_believed(journal: Journal) -> None:
    journal.commit_block(make_result())
    journal.file("blocks/conv@two_layer.npz").rename(journal.file("blocks/dense@two_layer.npz"))
    assert journal.committed_blocks() == {}


@pytest.mark.parametrize("change", ["a field more", "a field less", "no fields"])
def test_a_whole_block_of_another_version_is_trained_again(journal: Journal, change: str) -> None:
    fields = {name: value for name, value in vars(make_result()).items() if name != "weights"}
    if change == "a field more":
        fields["new"] = 1
    elif change == "a field less":
        del fields["nmse_history"]
    description = {"weights": [], **({} if change == "no fields" else {"fields": fields})}
    journal.write_bytes("blocks/conv@two_layer.npz", pack(description, []))
    assert journal.committed_blocks() == {}


def test_a_worker_of_an_earlier_run_writes_no_block_into_a_new_one(journal: Journal) -> None:
    """Its coordinator was killed, and the user has started again in a directory of the same name."""
    earlier = pickle.loads(pickle.dumps(journal))
    shutil.rmtree(journal.path)
    with pytest.raises(CorruptStateError, match="is gone"):
        earlier.commit_block(make_result())
    assert not journal.path.exists()
    new = Journal.create(journal.path, IDENTITY | {"epochs": 9})
    with pytest.raises(CorruptStateError, match="holds another run"):
        earlier.commit_block(make_result())
    assert new.committed_blocks() == {}


def test_a_block_of_other_settings_is_trained_again(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.commit_block(make_result())
    other = Journal.create(journal.path.with_name("other"), IDENTITY | {"epochs": 9})
    name = f"blocks/{block_file_name(key())}"
    other.write_bytes(name, journal.file(name).read_bytes())
    for reader in (other, Journal(other.path)):
        assert reader.committed_block(key()) is None
    assert "other settings" in caplog.text
    assert list(Journal(journal.path).committed_blocks()) == [key()]


def test_blocks_of_earlier_versions_of_pbd_are_read(journal: Journal) -> None:
    fields = {name: value for name, value in vars(make_result(weights={})).items() if name != "weights"}
    journal.write_bytes("blocks/conv@two_layer.npz", pack({"fields": fields, "weights": []}, []))
    assert list(Journal.resume(journal.path, IDENTITY).committed_blocks()) == [key()]


def test_pickled_content_is_never_loaded(journal: Journal) -> None:
    np.savez(
        journal.file("blocks/conv@two_layer.npz"), meta=np.array([{"a": 1}], object), sha256=np.zeros(32, np.uint8)
    )
    assert journal.committed_blocks() == {}
    with pytest.raises(TypeError, match="plain numbers"):
        journal.commit_block(make_result(weights={"w": np.array([None])}))


def test_foreign_and_temporary_files_are_ignored(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.commit_block(make_result())
    for name in (".0123.tmp", "conv.npz.tmp", "notes.txt", ".DS_Store"):
        journal.file(f"blocks/{name}").write_bytes(b"half")
    assert list(journal.committed_blocks()) == [key()]
    assert not caplog.records


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(journal: Journal, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    journal.write_bytes("kept.bin", b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(journal.path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        for name in ("kept.bin", "new.bin"):
            with pytest.raises(OSError, match="No space"):
                journal.write_bytes(name, b"new")
        with pytest.raises(OSError, match="No space"):
            journal.commit_block(make_result())
    assert sorted(journal.path.rglob("*")) == before
    assert journal.file("kept.bin").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_said_in_a_line_with_its_remedy(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CannotWriteError, match=os.strerror(number)) as caught:
        journal.commit_block(make_result())
    received = pickle.loads(pickle.dumps(caught.value))
    assert (type(received), str(received)) == (CannotWriteError, str(caught.value))
    assert isinstance(received, OSError), "what may fail without harm is still suppressed"
    assert received.exit_code == 74
    assert f"{journal.path}/blocks" in str(received)
    assert "--resume" in str(received)
    assert "\n" not in str(received)


def test_a_directory_is_not_made_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CannotCreateError, match=r"No space left on device\. Give another"):
            Journal.create(tmp_path / "run", IDENTITY)
    Journal.create(tmp_path / "run", IDENTITY)


def test_a_lock_on_a_full_disk_is_refused_in_a_line(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Full(path, "a+"))
    with pytest.raises(CannotWriteError, match="No space left on device"), lock.held(journal.path):
        pass


def test_json_is_strict_and_knows_numpy(journal: Journal) -> None:
    path = journal.write_json("sub/a.json", {"a": np.float32(0.5), "p": Path("x"), "t": (1, 2)})
    assert json.loads(path.read_text()) == {"a": 0.5, "p": "x", "t": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        journal.write_json("b.json", {"a": float("nan")})
    assert not journal.file("b.json").exists()


def test_several_processes_commit_at_once(journal: Journal) -> None:
    assert pickle.loads(pickle.dumps(journal)) == journal
    names = [f"conv{index}" for index in range(8)]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(journal.commit_block, [make_result(name) for name in names]))
    assert sorted(journal.committed_blocks()) == list(map(key, names))
