"""Folders and archives whose splits are spelled in many ways; layouts with two readings are refused, with a way out."""

from pathlib import Path

import numpy as np
import pytest

from pbd.data.folders import load_folder
from pbd.data.folders.layout import split_folders
from pbd.data.sources import load_npz
from pbd.data.split_names import split_role
from pbd.errors import BadInputError

pytestmark = pytest.mark.fast


def images(root: Path, *folders: str, count: int = 3) -> Path:
    """Make folders that hold empty image files."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.png").touch()
    return root


def splits(root: Path, *names: str) -> Path:
    return images(root, *(f"{name}/{label}" for name in names for label in ("ant", "bee")))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(
            (name, "train")
            for name in ("train", "TRAIN", "Training", "training_set", "train-set", "Train Images", "trn")
        ),
        *((name, "test") for name in ("test", "Testing", "test_set", "TestData", "evaluation", "hold-out")),
        *((name, "validation") for name in ("val", "Valid", "validation", "val2017", "dev", "validation_split")),
        *(
            (name, None)
            for name in ("trains", "bullet_train", "crash test", "invalid", "bus", "settings", "", "class test")
        ),
    ],
)
def test_names_of_splits(name: str, role: str | None) -> None:
    assert split_role(name) == role


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Training", "Testing"), ("Train", "test"), ("training_set", "Test_Set"), ("trn", "valid")],
)
def test_spellings_may_differ_within_a_data_set(tmp_path: Path, train: str, test: str) -> None:
    raw = load_folder(splits(tmp_path, train, test))
    assert raw.test is not None
    assert {Path(path).parts[-3] for path in raw.train.images.paths} == {train}
    assert {Path(path).parts[-3] for path in raw.test.images.paths} == {test}
    assert raw.num_classes == 2


def test_three_splits_and_a_folder_that_is_none(tmp_path: Path) -> None:
    root = images(splits(tmp_path, "Training", "Validation", "Evaluation"), "unlabelled")
    (root / "annotations").mkdir()
    found = split_folders(root)
    assert [folder.name for folder in found.present] == ["Training", "Validation", "Evaluation"]


@pytest.mark.parametrize("classes", [("train", "bus"), ("Train", "bus", "bullet_train"), ("invalid", "valid")])
def test_classes_that_are_named_like_a_split(tmp_path: Path, classes: tuple[str, ...]) -> None:
    raw = load_folder(images(tmp_path, *classes))
    assert (raw.num_classes, len(raw.train.images), raw.test) == (len(classes), 3 * len(classes), None)


def test_two_folders_for_one_split_are_refused_until_one_is_gone(tmp_path: Path) -> None:
    root = splits(tmp_path / "data", "train", "test", "Testing")
    with pytest.raises(BadInputError, match=r"one folder must hold the test images.*'Testing' and 'test'.*move one"):
        load_folder(root)
    (root / "Testing").rename(tmp_path / "elsewhere")
    assert load_folder(root).test is not None


@pytest.mark.parametrize("layout", [("test", "ant", "bee"), ("validation", "ant", "bee")])
def test_a_class_folder_that_looks_like_a_split_is_refused_and_both_ways_out_work(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    split, *classes = layout
    as_class = images(tmp_path / "one", *layout)
    with pytest.raises(BadInputError, match=f"Rename '{split}' to 'class {split}' if it is a class.*into train/"):
        load_folder(as_class)
    (as_class / split).rename(as_class / f"class {split}")
    assert load_folder(as_class).num_classes == 3
    as_split = images(tmp_path / "two", *classes, *(f"{split}/{name}" for name in classes))
    with pytest.raises(BadInputError, match="move the class folders into train/"):
        load_folder(as_split)
    (as_split / "train").mkdir()
    for name in classes:
        (as_split / name).rename(as_split / "train" / name)
    raw = load_folder(as_split)
    assert raw.test is not None
    assert (raw.num_classes, len(raw.train.images), len(raw.test.images)) == (2, 6, 6)


@pytest.mark.parametrize("labels", [True, False])
def test_a_split_in_another_language_is_refused_and_both_ways_out_work(tmp_path: Path, labels: bool) -> None:
    root = splits(tmp_path / "data", "train", "Prüfung")
    with pytest.raises(BadInputError, match=r"'train'.*beside 'Prüfung'.*after its split.*or move it out"):
        load_folder(root, labels)
    (root / "Prüfung").rename(root / "test")
    assert load_folder(root, labels).test is not None
    (root / "test").rename(tmp_path / "elsewhere")
    assert load_folder(root, labels).test is None


def test_test_images_alone_are_refused_and_both_ways_out_work(tmp_path: Path) -> None:
    root = splits(tmp_path, "Test")
    with pytest.raises(BadInputError, match=r"needs train/ beside it. Received: 'Test'.*/Test'"):
        load_folder(root)
    assert load_folder(root / "Test").num_classes == 2
    splits(root, "train")
    assert load_folder(root).test is not None


def test_a_folder_around_the_data_set_is_refused_with_its_content(tmp_path: Path) -> None:
    images(tmp_path, "archive/ant", "archive/bee")
    with pytest.raises(BadInputError, match=r"give '.*archive' if the classes are in it"):
        load_folder(tmp_path)
    assert load_folder(tmp_path / "archive").num_classes == 2


PIXELS, LABELS = np.zeros((6, 4, 4, 3), np.uint8), np.arange(6) % 2


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("trainX", "trainy", "testX", "testy"),
        ("images_training", "labels_training", "images_eval", "targets_eval"),
        ("images", "labels", "test_data", "test_targets"),
        ("X", "y", "x_test", "y_test"),
    ],
)
def test_archives_have_usual_spellings(tmp_path: Path, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "data.npz", **dict(zip(names, (PIXELS, LABELS) * 2, strict=True)), class_names=np.zeros(2))
    raw = load_npz(tmp_path / "data.npz")
    assert raw.test is not None
    assert (len(raw.train.images), len(raw.test.images), raw.num_classes) == (6, 6, 2)
    assert load_npz(tmp_path / "data.npz", labels=False).num_classes is None


def test_a_standard_name_wins_and_two_other_spellings_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x_train=PIXELS, images=PIXELS[:2], y_train=LABELS)
    assert len(load_npz(tmp_path / "one.npz").train.images) == 6
    np.savez(tmp_path / "two.npz", train_images=PIXELS, images=PIXELS[:2], y_train=LABELS)
    with pytest.raises(BadInputError, match=r"'train_images' and 'images'. Name the one to use x_train\."):
        load_npz(tmp_path / "two.npz")


def test_the_keys_that_are_there_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", PIXELS, LABELS, **{f"other{number}": LABELS for number in range(8)})
    with pytest.raises(BadInputError, match=r"Received: other0, .* and 2 more. Add x_train\."):
        load_npz(tmp_path / "data.npz")
