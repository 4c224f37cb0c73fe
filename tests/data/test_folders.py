"""Folders of images: class folders, folders of splits, images without labels, and what is refused."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import load
from pbd.errors import BadInputError
from tests.helpers.batches import assert_unlabelled, same, taken
from tests.helpers.image_files import ODD_FOLDER, write_bmp, write_images
from tests.helpers.numbered_images import config, one_line

pytestmark = pytest.mark.usefixtures("few_threads")


def test_a_folder_of_classes_is_split_by_us(tmp_path: Path) -> None:
    root = tmp_path / ODD_FOLDER
    write_images(root / "кот", kind="jpg")
    write_images(root / "собака 2", size=(5, 11))
    write_bmp(root / "собака 2" / "x.bmp")
    (root / "кот" / "._bild 00.jpg").write_bytes(b"resource fork")
    data = load(config(root, batch_size=4), 0, (8, 8, 3))
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 2, 4)
    assert data.image_shape == (8, 8, 3)
    assert data.num_classes == 2
    paths = [data.test.images.paths[row] for row in data.test.rows]
    assert [Path(path).parent.name for path in paths] == [("кот", "собака 2")[label] for label in data.test.labels]
    assert sorted(data.test.labels) == [0, 0, 1, 1]
    images, labels = taken(data.batches("test"))[0]
    assert images.shape == (4, 8, 8, 3)
    assert list(labels) == list(data.test.labels)
    assert 0 <= images.min() <= images.max() <= 255
    assert same(
        taken(data.training_batches(1, 2)), taken(load(config(root, batch_size=4), 0, (8, 8, 3)).training_batches(1, 2))
    )


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    for role, count in (("train", 8), ("test", 3), ("validation", 2)):
        for name in ("b", "a"):
            write_images(tmp_path / role / name / "images", count)
    data = load(config(tmp_path, image_size=6), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 6)
    assert [Path(path).parts[-3] for path in data.test.images.paths] == ["a"] * 3 + ["b"] * 3
    grey = load(config(tmp_path, image_size=6), 0, (None, None, 1))
    assert taken(grey.batches("test"))[0][0].shape == (6, 6, 6, 1)


def test_image_files_in_formats_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ant", "bee"):
        write_images(tmp_path / name)
    load(config(tmp_path, image_size=6), 0)
    assert not caplog.records
    for name in ("ant/a.webp", "bee/b.TIFF", "bee/._c.webp", "bee/notes.txt"):
        (tmp_path / name).touch()
    assert len(load(config(tmp_path, image_size=6), 0).train.images) == 20
    (record,) = caplog.records
    assert record.getMessage().startswith(f"2 image files, such as '{tmp_path / 'ant' / 'a.webp'}', are left out")
    assert "Convert them to PNG or JPEG" in record.getMessage()


def test_a_folder_without_test_is_tested_on_its_validation_images(tmp_path: Path) -> None:
    for role, count in (("train", 10), ("val", 3)):
        for name in ("a", "b"):
            write_images(tmp_path / role / name, count)
    data = load(config(tmp_path, image_size=6), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)


def test_a_folder_of_images_alone_is_data_without_labels(tmp_path: Path) -> None:
    root = tmp_path / ODD_FOLDER
    write_images(root, 20)
    write_bmp(root / "x.bmp")
    (root / "._bild 00.png").write_bytes(b"resource fork")
    (root / "notes.txt").write_text("no image")
    write_images(root / ".thumbnails", 2)
    data = load(config(root, batch_size=4), 0, (8, 8, 3))
    assert_unlabelled(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 2, 4)
    rows = np.concatenate([data.train.rows, data.validation.rows, data.test.rows])
    assert sorted(rows) == list(range(21))
    assert len({data.train.images.paths[row] for row in rows}) == 21
    assert np.array_equal(data.train.rows, load(config(root, batch_size=4), 0, (8, 8, 3)).train.rows)


def test_train_test_and_validation_folders_of_images_alone_are_data_without_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 20)
    assert len(load(config(tmp_path, image_size=6), 0).test) == 4
    write_images(tmp_path / "val", 3)
    data = load(config(tmp_path, image_size=6), 0)
    assert_unlabelled(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 3)
    write_images(tmp_path / "test", 4)
    data = load(config(tmp_path, image_size=6), 0)
    assert_unlabelled(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 3, 4)
    assert {Path(path).parent.name for path in data.test.images.paths} == {"test"}


def test_a_folder_that_mixes_images_and_class_folders_is_refused_with_both_readings(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 5)
    write_images(tmp_path, 3)
    readings = ("class folders", "images without labels", "'a'", "'bild 00.png'", "--no-labels")
    one_line(BadInputError, *readings, dataset=tmp_path, image_size=8)
    data = load(config(tmp_path, image_size=8, labels=False, batch_size=4), 0)
    assert_unlabelled(data)
    assert len(data.train) + len(data.validation) + len(data.test) == 13
    for path in tmp_path.glob("*.png"):
        path.rename(path.with_name(f".{path.name}"))
    assert load(config(tmp_path, image_size=8, batch_size=4), 0).num_classes == 2


def test_splits_of_a_folder_have_labels_all_or_none(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 20)
    for name in ("a", "b"):
        write_images(tmp_path / "test" / name, 3)
    one_line(BadInputError, "a, b", "none", "--no-labels", dataset=tmp_path, image_size=8)
    data = load(config(tmp_path, image_size=8, labels=False), 0)
    assert_unlabelled(data)
    assert len(data.test) == 6
    (tmp_path / "train").rename(tmp_path / "other")
    (tmp_path / "test").rename(tmp_path / "train")
    (tmp_path / "other").rename(tmp_path / "test")
    one_line(BadInputError, "a, b", "--no-labels", dataset=tmp_path, image_size=8)


def test_class_folders_whose_labels_are_not_used_are_folders_of_images(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "a", 12)
    (tmp_path / "data" / "empty").mkdir()
    write_images(tmp_path / "elsewhere" / "deep", 8)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "circle").symlink_to(tmp_path / "elsewhere")
    data = load(config(tmp_path / "data", image_size=8, labels=False), 0)
    assert_unlabelled(data)
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    shutil.rmtree(tmp_path / "data" / "a")
    (tmp_path / "data" / "link").unlink()
    one_line(BadInputError, "none in", "data'", dataset=tmp_path / "data", image_size=8, labels=False)


def test_a_link_from_a_class_to_the_folder_above_brings_no_images_of_other_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 12)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    data = load(config(tmp_path, image_size=8), 0)
    assert len(data.train) + len(data.validation) + len(data.test) == 24


def test_a_broken_image_without_a_label_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "bild 03.png").write_bytes(b"no image at all")
    one_line(BadInputError, "bild 03.png", dataset=tmp_path, image_size=8)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    one_line(BadInputError, "two class folders", dataset=tmp_path)
    write_images(tmp_path / "a")
    one_line(BadInputError, "1 class folders", "--no-labels", dataset=tmp_path)
    (tmp_path / "b").mkdir()
    one_line(BadInputError, "none in", "b'", dataset=tmp_path)
    write_images(tmp_path / "b")
    one_line(BadInputError, "--image-size", dataset=tmp_path)
    whole = (tmp_path / "b" / "bild 03.png").read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 2]):
        (tmp_path / "b" / "bild 03.png").write_bytes(content)
        one_line(BadInputError, "bild 03.png", dataset=tmp_path, image_size=8)
    write_images(tmp_path / "other" / "train" / "a")
    write_images(tmp_path / "other" / "train" / "b")
    write_images(tmp_path / "other" / "test" / "c")
    one_line(BadInputError, "a, b, c", dataset=tmp_path / "other", image_size=8)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "a")
    try:
        (tmp_path / "a").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    write_images(tmp_path / "b")
    with pytest.raises(BadInputError, match=r"must be UTF-8\. Received: .*caf\\xe9"):
        load(config(tmp_path, batch_size=4), 0, (8, 8, 3))


def test_class_folders_are_read_in_one_order_with_and_without_labels(tmp_path: Path) -> None:
    """`cat-big` sorts before `cat/` as text, and behind `cat` as a folder."""
    for name in ("cat", "cat-big", "dog"):
        write_images(tmp_path / name)
    config = DataConfig(dataset=str(tmp_path), image_size=8, batch_size=2)
    kept = load(config, seed=0, split_by_class=False)
    without = load(dataclasses.replace(config, labels=False), seed=0)
    assert kept.train.images.paths == without.train.images.paths
