"""Damaged image files: all are named before training; in a data set too large to check, one does not end the run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import images as stores
from pbd.data import load
from pbd.errors import BadInputError, MissingInputError
from pbd.run_dir import damaged_images
from pbd.run_dir.journal import Journal
from tests.helpers.cluster import PATIENCE_S

BATCH = 4
SPLITS = {"train": 8, "validation": 4, "test": 4}


def encoded(kind: str, number: int = 0) -> bytes:
    import tensorflow as tf

    pixels = np.random.default_rng(number).integers(1, 256, (16, 16, 3)).astype(np.uint8)
    return (tf.io.encode_png(pixels) if kind == "png" else tf.io.encode_jpeg(pixels)).numpy()


def bmp() -> bytes:
    header = (
        b"BM" + (54 + 48).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    )
    size = (4).to_bytes(4, "little") * 2
    return header + size + b"\x01\x00\x18\x00" + bytes(24) + bytes(48)


def gif() -> bytes:
    head = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    return head + b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


def overwritten(content: bytes) -> bytes:
    return content[:120] + b"\xff" * 200 + content[-2:]


DAMAGES: dict[str, Callable[[], bytes]] = {
    "overwritten.jpg": lambda: overwritten(encoded("jpg")),
    "cut.jpg": lambda: encoded("jpg")[:-40],
    "cut.png": lambda: encoded("png")[:-40],
    "overwritten.png": lambda: overwritten(encoded("png")) + encoded("png")[-12:],
    "cut.bmp": lambda: bmp()[:-20],
    "cut.gif": lambda: gif()[:25],
    "text.jpg": lambda: b"404 not found",
    "empty.gif": lambda: b"",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three splits and two classes."""
    root = tmp_path_factory.mktemp("images")
    for split, count in SPLITS.items():
        for label in ("ant", "bee"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                (root / split / label / f"{number}.jpg").write_bytes(encoded("jpg", number))
    (root / "test" / "ant" / "more.bmp").write_bytes(bmp())
    (root / "test" / "ant" / "more.gif").write_bytes(gif())
    return root


def config(folder: Path) -> DataConfig:
    return DataConfig(dataset=str(folder), image_size=8, batch_size=BATCH)


@pytest.fixture
def damaged(folder: Path) -> Iterator[Path]:
    """A damaged file of the training split."""
    path = folder / "train" / "bee" / "5.jpg"
    whole = path.read_bytes()
    path.write_bytes(overwritten(whole))
    yield path
    path.write_bytes(whole)


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_file_is_named_and_removing_it_works(folder: Path, split: str, name: str) -> None:
    damaged = folder / split / "bee" / name
    damaged.write_bytes(DAMAGES[name]())
    with pytest.raises(BadInputError, match=f"1 of {2 * sum(SPLITS.values()) + 3} files .*{name}'. Remove them"):
        load(config(folder), 0)
    damaged.unlink()
    load(config(folder), 0)


def test_several_damaged_files_are_named_together_and_saving_them_again_works(folder: Path) -> None:
    damaged = [folder / split / "bee" / "damaged.png" for split in SPLITS]
    for path in damaged:
        path.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"3 of .*train.*validation.*test.*save them again as PNG"):
        load(config(folder), 0)
    for path in damaged:
        path.write_bytes(encoded("png"))
    load(config(folder), 0)
    for path in damaged:
        path.unlink()


def test_a_file_that_is_gone_is_no_damaged_file(folder: Path) -> None:
    path = folder / "train" / "bee" / "link.png"
    path.symlink_to("nowhere.png")
    with pytest.raises(MissingInputError, match=r"link.png"):
        load(config(folder), 0)
    path.unlink()


def test_in_a_data_set_too_large_to_check_a_damaged_file_is_a_black_image(
    folder: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = damaged.read_bytes()
    damaged.write_bytes(encoded("jpg", 5))
    expected = [np.asarray(images) for images, _ in load(config(folder), 0).batches("train")]
    damaged.write_bytes(content)
    monkeypatch.setattr(stores, "MOST_DECODED", 2)
    data = load(config(folder), 0)
    named: list[str] = []
    data.observe_damaged_files(named.append)
    for _ in range(2):
        batches = [np.asarray(images) for images, _ in data.batches("train")]
        differing = [
            image
            for batch, other in zip(batches, expected, strict=True)
            for image in batch[(batch != other).any((1, 2, 3))]
        ]
        assert len(differing) == 1
        assert not differing[0].any()
    assert sum(len(labels) for _, labels in data.training_batches(0, 1)) == 16
    assert named == [str(damaged)]
    data.observe_damaged_files(named.append)
    assert named[1:] == named[:1], "whoever comes later is told as well"
    assert [record.getMessage().count("5.jpg cannot be decoded") for record in caplog.records] == [1]


def test_the_report_names_damaged_files_that_every_process_met(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {})
    assert damaged_images.events(journal) == ()
    for number in (4, 1, 4, 2, 3):
        damaged_images.write(journal, f"/data/{number}.jpg")
    (event,) = damaged_images.events(journal)
    assert event == (
        "4 image files could not be decoded, black images took their place: "
        "'/data/1.jpg', '/data/2.jpg', '/data/3.jpg' and 1 more (see damaged_images/)"
    )
    step = Journal(tmp_path / "run" / "steps" / "01-fine_tune")
    step.path.mkdir(parents=True)
    damaged_images.write(step, "/data/4.jpg")
    assert damaged_images.events(journal) == (event,), "met before"
    damaged_images.write(step, "/data/5.jpg")
    assert "5 image files" in damaged_images.events(journal)[0]
    damaged_images.write(Journal(tmp_path / "elsewhere"), "/data/1.jpg")
    assert not (tmp_path / "elsewhere").exists()


READ_EVENTS = """
import pathlib, sys
from pbd.run_dir import damaged_images
from pbd.run_dir.journal import Journal
print(ascii(damaged_images.events(Journal(pathlib.Path(sys.argv[1])))[0]))
"""


def test_names_are_read_in_any_locale(tmp_path: Path) -> None:
    damaged_images.write(Journal(tmp_path), "/данные/1.jpg")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", READ_EVENTS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ascii("/данные/1.jpg").strip("'") in done.stdout, done.stderr


def test_a_run_with_a_damaged_file_says_so_in_its_report(
    folder: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the coordinator and in a worker, which load the data each."""
    import keras

    import pbd

    monkeypatch.setattr(stores, "MOST_DECODED", 2)
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(8, 3, name="conv")(keras.layers.Rescaling(1 / 255)(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(features)))
    settings = {"block": "decoupled_r2", "executor": "serial", "isolate": False, "costs": "macs", "epochs": 1}
    data = pbd.Data.load(folder, batch_size=BATCH)
    settings |= {"fine_tune_epochs": 0, "include_unprofitable": True}
    result = pbd.distill(teacher, data, **settings, run_dir=str(tmp_path / "run"))
    (event,) = result.report.events
    assert event == f"1 image file could not be decoded, black images took their place: {str(damaged)!r}"
    for name in ("report.json", "report.html", "summary.txt"):
        assert "could not be decoded" in " ".join((tmp_path / "run" / name).read_text().split())
