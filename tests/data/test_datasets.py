"""Datasets: what is loaded, how it is split, that batches hang on the seed alone, and what is said of bad input."""

import dataclasses
import importlib.util
import pickle
import shutil
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import AUGMENTATIONS, DataConfig
from pbd.data import Dataset, absolute, load, sources
from pbd.data.resizing import resized_bilinearly
from pbd.data.sources import load_digits
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError, PbdError, UsageError
from tests.helpers.cluster import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
ODD_FOLDER = "daten – 数据 é"
Batches = list[tuple[np.ndarray, np.ndarray]]
SPLITS = ("train", "validation", "test")
NO_Y = {"y_train": None, "y_test": None}


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> None:
    import tensorflow as tf

    if not tf.config.list_logical_devices("CPU"):
        tf.config.threading.set_intra_op_parallelism_threads(1)


def config(dataset: str | Path = "digits", **settings: Any) -> DataConfig:
    return DataConfig(dataset=str(dataset), **{"batch_size": 8, **settings})


def arrays(
    train: int = 60, test: int = 12, shape: tuple[int, ...] = (6, 6, 3), classes: int = 3
) -> dict[str, np.ndarray]:
    """Return arrays in which the first pixel of every image is its own number."""
    numbers = np.arange(train + test)
    images = np.random.default_rng(1).integers(0, 256, (train + test, *shape), dtype=np.uint8)
    images.reshape(train + test, -1)[:, 0] = numbers
    return {
        "x_train": images[:train],
        "y_train": numbers[:train] % classes,
        "x_test": images[train:],
        "y_test": numbers[train:] % classes,
    }


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an archive, the default arrays changed as told, and gives its path."""

    def write(**changes: np.ndarray | None) -> Path:
        (tmp_path / ODD_FOLDER).mkdir(exist_ok=True)
        path = tmp_path / ODD_FOLDER / "bilder 1.npz"
        np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
        return path

    return write


def taken(batches: Any) -> Batches:
    """Return all batches as numpy arrays."""
    return [(x.numpy(), y.numpy()) for x, y in batches]


def ids(batches: Any) -> np.ndarray:
    """Return the numbers in the first pixels."""
    return np.concatenate([x[:, 0, 0, 0] for x, _ in taken(batches)]).astype(int)


def every_id(data: Dataset) -> np.ndarray:
    """Return the numbers in the first pixels of all images of all splits."""
    return np.concatenate([ids(data.batches(name)) for name in SPLITS])


def labels_of(data: Dataset) -> dict[str, np.ndarray]:
    """Return the labels that the batches of each split have."""
    return {name: np.concatenate([y for _, y in taken(data.batches(name))]) for name in SPLITS}


def own_validation() -> dict[str, np.ndarray]:
    """Return arrays for a validation split of its own, of 20 images."""
    own = arrays(train=20, test=0)
    return {"x_val": own["x_train"] // 2, "y_val": own["y_train"][:, np.newaxis]}


def assert_unlabelled(data: Dataset) -> None:
    """Check that nothing says a class: every label of every batch is -1, as an int32."""
    assert not data.labelled
    assert data.num_classes is None
    batches = [*taken(data.training_batches(0, 1)), *(batch for name in SPLITS for batch in taken(data.batches(name)))]
    assert {y.dtype for _, y in batches} == {np.dtype(np.int32)}
    assert {label for _, y in batches for label in y} == {-1}
    assert all(len(x) == len(y) for x, y in batches)


def same(left: Batches, right: Batches) -> bool:
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in pairs)


def one_line(kind: type[PbdError], *fragments: str, image_shape: Any = None, **settings: Any) -> None:
    """Check that loading fails with this error, in one line that has these fragments."""
    with pytest.raises(PbdError) as caught:
        load(config(**settings), 0, image_shape)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


# Splits


def test_digits_are_32_by_32_and_keep_one_test_split_for_every_seed() -> None:
    one, other = load(config(), 0), load(config(), 1)
    assert one.image_shape == (32, 32, 1)
    assert one.num_classes == 10
    assert one.train.images.array.dtype == np.uint8
    assert one.train.images.array.max() == 255
    assert len(one.test) == 359
    assert np.array_equal(one.test.rows, other.test.rows)
    assert not np.array_equal(one.validation.rows, other.validation.rows)


@pytest.mark.parametrize("name", [sources.DIGITS, "moved.csv.gz"])
def test_digits_are_those_of_scikit_learn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is read in place; were it elsewhere, scikit-learn itself would be asked."""
    from sklearn import datasets

    asked = []
    whole = datasets.load_digits
    monkeypatch.setattr(datasets, "load_digits", lambda: asked.append(name) or whole())
    monkeypatch.setattr(sources, "DIGITS", name)
    images, labels = sources._read_digits()
    assert bool(asked) == (name != "digits.csv.gz")
    np.testing.assert_array_equal(images, whole().images)
    np.testing.assert_array_equal(labels, whole().target)


@pytest.mark.parametrize("sides", [(8, 8), (9, 50), (64, 33), (32, 33)])
def test_images_are_resized_as_by_tensorflow(sides: tuple[int, int]) -> None:
    import tensorflow as tf

    images = np.random.default_rng(0).uniform(0, 255, (5, *sides, 2))
    expected = tf.image.resize(images, (32, 33), "bilinear").numpy()
    np.testing.assert_array_equal(resized_bilinearly(images, 32, 33), expected)


def test_splits_are_disjoint_and_complete() -> None:
    data = load(config(), 3)
    rows = [split.rows for split in (data.train, data.validation, data.test)]
    assert len(np.unique(np.concatenate(rows))) == sum(map(len, rows)) == 1797


def test_the_validation_split_is_stratified() -> None:
    data = load(config(validation_fraction=0.2), 0)
    pool = np.bincount(data.train.labels) + np.bincount(data.validation.labels)
    assert np.all(np.abs(np.bincount(data.validation.labels) - 0.2 * pool) <= 1)


def test_a_split_seed_leaves_the_splits_and_not_the_order_to_the_seed() -> None:
    first, second, other = (load(config(split_seed=5), 0), load(config(split_seed=5), 1), load(config(), 1))
    for split in ("train", "validation"):
        assert np.array_equal(getattr(first, split).rows, getattr(second, split).rows)
        assert not np.array_equal(getattr(first, split).rows, getattr(other, split).rows)
    labels = [next(iter(data.training_batches(0, 1)))[1] for data in (first, second)]
    assert not np.array_equal(*labels)


def test_a_train_limit_leaves_the_validation_split_and_is_balanced() -> None:
    whole, limited = load(config(), 0), load(config(train_limit=100), 0)
    assert np.array_equal(whole.validation.rows, limited.validation.rows)
    assert len(limited.train) == 100
    assert np.all(np.abs(np.bincount(limited.train.labels) - 10) <= 1)


def test_a_negative_and_a_large_seed_are_seeds_too() -> None:
    assert not np.array_equal(load(config(), -1).train.rows, load(config(), 2**40).train.rows)


def test_an_npz_with_its_own_validation_split_keeps_it(npz: Callable[..., Path]) -> None:
    data = load(config(npz(**own_validation())), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 12)
    assert list(labels_of(data)["validation"]) == [number % 3 for number in range(20)]


def test_an_npz_without_a_test_split_gives_some_of_its_training_images(npz: Callable[..., Path]) -> None:
    path = npz(x_test=None, y_test=None)
    one, other = load(config(path), 0), load(config(path), 1)
    assert (len(one.train), len(one.validation), len(one.test)) == (43, 5, 12)
    assert list(ids(one.batches("test"))) == list(ids(other.batches("test")))
    assert sorted(every_id(one)) == list(range(60))
    assert list(np.bincount(one.test.labels)) == [4, 4, 4]


# Without labels


@pytest.mark.parametrize("test", [{}, {"x_test": None}], ids=["own test split", "no test split"])
@pytest.mark.parametrize("validation", [{}, {"x_val": own_validation()["x_val"]}], ids=["no validation", "validation"])
def test_an_npz_without_labels_is_split_into_disjoint_parts(
    npz: Callable[..., Path], test: dict[str, Any], validation: dict[str, Any]
) -> None:
    path = npz(**NO_Y, **test, **validation)
    one, again, other = load(config(path), 0), load(config(path), 0), load(config(path), 1)
    assert_unlabelled(one)
    assert len(one.test) == 12
    assert len(one.validation) == (20 if validation else 5 if test else 6)
    if not validation:
        assert sorted(every_id(one)) == list(range(60 if test else 72))
    assert list(every_id(one)) == list(every_id(again)) != list(every_id(other))
    assert list(ids(one.batches("test"))) == list(ids(other.batches("test")))


def test_splits_without_labels_are_the_same_whatever_the_labels_are(npz: Callable[..., Path]) -> None:
    unlabelled = load(config(npz(**NO_Y)), 0)
    dropped = load(config(npz(), labels=False), 0)
    skewed = load(config(npz(y_train=np.arange(60) // 55), labels=False), 0)
    assert_unlabelled(dropped)
    assert list(every_id(unlabelled)) == list(every_id(dropped)) == list(every_id(skewed))
    assert list(every_id(unlabelled)) != list(every_id(load(config(npz()), 0)))


def test_splits_without_labels_are_not_stratified_but_random() -> None:
    data = load(config(labels=False, validation_fraction=0.2), 0)
    assert_unlabelled(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (1150, 288, 359)
    rows = [split.rows for split in (data.train, data.validation, data.test)]
    assert len(np.unique(np.concatenate(rows))) == 1797
    assert all(abs(np.mean(part) / 898 - 1) < 0.1 for part in rows)
    labels = load_digits().train.labels
    assert np.abs(np.bincount(labels[data.test.rows]) - 0.2 * np.bincount(labels)).max() > 2


def test_a_train_limit_without_labels_leaves_the_validation_split(npz: Callable[..., Path]) -> None:
    whole, limited = load(config(npz(**NO_Y)), 0), load(config(npz(**NO_Y), train_limit=10), 0)
    assert list(ids(limited.batches("train"))) == list(ids(whole.batches("train")))[:10]
    assert list(ids(limited.batches("validation"))) == list(ids(whole.batches("validation")))


def test_images_of_training_batches_do_not_hang_on_labels(npz: Callable[..., Path]) -> None:
    data = load(config(npz(**NO_Y), augment="paper"), 0)
    batches = taken(data.training_batches(0, 3))
    assert same(batches[data.steps_per_epoch :], taken(data.training_batches(1, 3)))
    assert same(batches, taken(pickle.loads(pickle.dumps(data)).training_batches(0, 3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"y_train": None},
        {"y_train": np.eye(3)[np.arange(60) % 3]},
        {"y_test": np.arange(5)},
        {"y_test": np.array([{}], object)},
        {"x_val": arrays()["x_test"]},
    ],
    ids=["missing", "one-hot", "too few", "pickled", "validation without labels"],
)
def test_labels_that_are_not_used_may_be_anything(npz: Callable[..., Path], changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadInputError):
        load(config(npz(**changes)), 0)
    assert_unlabelled(load(config(npz(**changes), labels=False), 0))


def test_labels_are_used_unless_told_otherwise(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    assert data.labelled
    assert data.num_classes == 3
    assert {name: set(labels) for name, labels in labels_of(data).items()} == {name: {0, 1, 2} for name in SPLITS}


# Batches


def test_every_epoch_is_a_permutation_of_its_own(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), batch_size=9), 0)
    assert len(data.train) == 54
    first, second = (ids(data.training_batches(epoch, epoch + 1)) for epoch in (0, 1))
    train = set(ids(data.batches("train")))
    assert set(first) == set(second) == train
    assert len(first) == len(second) == 54
    assert not np.array_equal(first, second)
    assert not train & (set(ids(data.batches("validation"))) | set(ids(data.batches("test"))))


def test_batches_are_full_and_counted(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), batch_size=16), 0)
    batches = taken(data.training_batches(0, 3))
    assert len(batches) == 3 * data.steps_per_epoch == 9
    assert {x.shape for x, _ in batches} == {(16, 6, 6, 3)}
    assert batches[0][0].dtype == np.float32
    assert batches[0][1].dtype == np.int32
    assert data.training_batches(0, 1).element_spec[0].shape == (16, 6, 6, 3)
    assert taken(data.training_batches(3, 3)) == []


def test_a_resumed_run_sees_the_same_batches(npz: Callable[..., Path]) -> None:
    data = load(config(npz(), augment="paper"), 0)
    assert same(taken(data.training_batches(0, 4))[2 * data.steps_per_epoch :], taken(data.training_batches(2, 4)))


def test_two_loads_agree_whatever_the_global_seed_and_two_seeds_do_not(npz: Callable[..., Path]) -> None:
    import tensorflow as tf

    path = npz()
    tf.random.set_seed(5)
    one = taken(load(config(path, augment="paper"), 0).training_batches(0, 2))
    tf.random.set_seed(6)
    assert same(one, taken(load(config(path, augment="paper"), 0).training_batches(0, 2)))
    assert not same(one, taken(load(config(path, augment="paper"), 1).training_batches(0, 2)))


def test_two_processes_agree(npz: Callable[..., Path]) -> None:
    code = (
        "import hashlib, sys; from pbd.config import DataConfig; from pbd.data import load\n"
        "from pbd.system import backend; backend.dedicate_process(); backend.load()\n"
        "data = load(DataConfig(dataset=sys.argv[1], batch_size=8, augment='paper'), 7)\n"
        "print(hashlib.sha256(b''.join(x.numpy().tobytes() for x, _ in data.training_batches(1, 3))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(npz())]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [run.communicate(timeout=PATIENCE_S)[0].strip() for run in runs]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]


def test_batches_of_a_split_keep_order_drop_nothing_and_can_be_limited(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    assert list(ids(data.batches("test"))) == list(range(60, 72))
    assert list(ids(data.batches("test", limit=10))) == list(range(60, 70))
    with pytest.raises(UsageError, match="validation"):
        data.batches("validatoin")


def test_a_dataset_survives_pickling(npz: Callable[..., Path]) -> None:
    data = load(config(npz()), 0)
    before = taken(data.training_batches(0, 1))
    assert same(before, taken(pickle.loads(pickle.dumps(data)).training_batches(0, 1)))


# Augmentation and preprocessing


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_augmentation_changes_training_images_reproducibly(npz: Callable[..., Path], name: str) -> None:
    path = npz()
    plain, data = load(config(path), 0), load(config(path, augment=name), 0)
    before, after = taken(plain.training_batches(0, 1)), taken(data.training_batches(0, 1))
    assert same(after, taken(data.training_batches(0, 1)))
    changed = [np.any(a != b) for (x, _), (z, _) in zip(before, after, strict=True) for a, b in zip(x, z, strict=True)]
    assert 0.2 < np.mean(changed) <= 1
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True))
    assert same(taken(plain.batches("validation")), taken(data.batches("validation")))


def test_a_flip_mirrors_and_a_crop_moves_whole_pixels() -> None:
    import tensorflow as tf

    from pbd.data.feeds.tf_augment import augmented

    images = np.random.default_rng(0).uniform(0, 255, (64, 16, 12, 3)).astype(np.float32)
    flipped = augmented(tf.constant(images), "flip", (1, 2)).numpy()
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    assert 16 < sum(mirrored) < 48
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, flipped, images, strict=True))
    padded = np.pad(images, ((0, 0), (2, 2), (1, 1), (0, 0)), "symmetric")
    places = set()
    for crop, whole in zip(augmented(tf.constant(images), "crop", (1, 2)).numpy(), padded, strict=True):
        (place,) = [(i, j) for i in range(5) for j in range(3) if np.array_equal(crop, whole[i : i + 16, j : j + 12])]
        places.add(place)
    assert len(places) > 10


def test_a_rotation_of_a_disc_leaves_it_where_it_is() -> None:
    import tensorflow as tf

    from pbd.data.feeds.tf_augment import augmented

    y, x = np.mgrid[:33, :33] - 16.0
    disc = np.broadcast_to((100.0 * np.exp(-(x**2 + y**2) / 72))[..., np.newaxis], (8, 33, 33, 1)).astype(np.float32)
    assert np.abs(augmented(tf.constant(disc), "rotate", (0, 0)).numpy() - disc).max() < 2.0


def test_preprocessing_matches_the_teachers_own(npz: Callable[..., Path]) -> None:
    from keras.applications import mobilenet_v2, vgg16

    path = npz()
    raw = taken(load(config(path), 0).batches("test"))[0][0]
    for name, function in (("vgg16", vgg16), ("mobilenet_v2", mobilenet_v2)):
        images = taken(load(config(path, preprocess=name), 0).batches("test"))[0][0]
        np.testing.assert_allclose(images, function.preprocess_input(raw.copy()), atol=1e-4)
    np.testing.assert_allclose(taken(load(config(path, preprocess="unit"), 0).batches("test"))[0][0], raw / 255)
    assert same([(raw, raw)], [(taken(load(config(path, preprocess="auto"), 0).batches("test"))[0][0], raw)])


def test_unknown_or_unfit_preprocessing_is_refused(npz: Callable[..., Path]) -> None:
    one_line(UsageError, "vgg16", dataset=npz(), preprocess="vgg_16")
    one_line(BadInputError, "1 channels", preprocess="vgg16")
    path = npz(**{name: (a / 255.0 if name[0] == "x" else a) for name, a in arrays().items()})
    one_line(BadInputError, "--preprocess none", dataset=path, preprocess="unit")
    assert load(config(path), 0).image_shape == (6, 6, 3)


# Shapes


def test_grayscale_is_repeated_for_a_colour_teacher() -> None:
    data = load(config(), 0, (32, None, 3))
    images = taken(data.batches("test", limit=4))[0][0]
    assert images.shape == (4, 32, 32, 3)
    assert np.array_equal(images[..., 0], images[..., 2])


def test_arrays_are_resized_only_when_asked(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "64x64x3", "32x32x3", "--image-size 64", image_shape=(64, 64, 3))
    one_line(BadInputError, "64x64x3", "16x16x3", image_size=16, image_shape=(64, 64, 3))
    data = load(config(image_size=64), 0, (64, 64, 3))
    assert taken(data.training_batches(0, 1))[0][0].shape == (8, 64, 64, 3)


def test_colour_does_not_become_grayscale_by_itself(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "channels", dataset=npz(), image_shape=(6, 6, 1))


# Folders


def write_images(folder: Path, count: int = 10, size: tuple[int, int] = (9, 7), kind: str = "png") -> None:
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    encode = {"png": tf.io.encode_png, "jpg": tf.io.encode_jpeg}[kind]
    for number in range(count):
        pixels = np.full((*size, 3), (number * 20, sum(folder.name.encode()) % 200, 7), np.uint8)
        (folder / f"bild {number:02}.{kind}").write_bytes(encode(pixels).numpy())


def write_bmp(path: Path, width: int = 4, height: int = 4) -> None:
    pixels = bytes(range(width * height * 3))
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    path.write_bytes(
        header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels
    )


@pytest.mark.parametrize("name", ["digits", "cifar10", "tfds:mnist"])
def test_names_stay_as_they_are_in_another_working_directory(name: str) -> None:
    assert absolute(name) == name


def test_paths_mean_the_same_in_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("images.npz") == str(tmp_path / "images.npz")
    assert absolute(config("~/images.npz").dataset) == str(Path.home() / "images.npz")


def test_a_digest_tells_data_apart_by_what_they_hold(npz: Callable[..., Path]) -> None:
    def digest(seed: int = 0, **changes: np.ndarray) -> str:
        return load(config(npz(**changes), batch_size=4), seed).digest()

    whole = arrays()
    pixel, label = whole["x_train"].copy(), whole["y_train"].copy()
    pixel[-1, -1, -1] ^= 1
    label[-1] = (label[-1] + 1) % (label.max() + 1)
    found = [digest(), digest(x_train=pixel), digest(y_train=label), digest(seed=1)]
    assert len(set(found)) == 4
    assert digest() == found[0]


def test_a_folder_is_told_apart_by_its_names_wherever_it_lies(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        return load(config(tmp_path / folder, batch_size=4), 0, (8, 8, 3)).digest()

    for name in ("here/a", "here/b"):
        write_images(tmp_path / name, kind="png")
    before = digest("here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert digest("there") == before
    write_bmp(tmp_path / "there" / "a" / "one more.bmp")
    assert digest("there") != before


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


# Errors of names, archives and arrays


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    one_line(MissingInputError, "'cifar10'", dataset="cifar-10")
    one_line(MissingInputError, "no.npz", dataset=tmp_path / "no.npz")
    one_line(MissingInputError, "nowhere", dataset=tmp_path / "nowhere")
    (tmp_path / "data.csv").write_text("1,2")
    one_line(BadInputError, ".npz", dataset=tmp_path / "data.csv")


def test_bad_archives_are_named(tmp_path: Path, npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "Add y_test, or give --no-labels.", dataset=npz(y_test=None))
    one_line(BadInputError, "Add y_train, or give --no-labels.", dataset=npz(y_train=None))
    one_line(BadInputError, "Add y_test, y_train, or give --no-labels.", dataset=npz(**NO_Y, **own_validation()))
    one_line(BadInputError, "Add y_val", dataset=npz(x_val=arrays()["x_test"]))
    one_line(BadInputError, "Add x_val.", dataset=npz(y_val=arrays()["y_test"]))
    one_line(BadInputError, "Add x_train.", dataset=npz(x_train=None))
    one_line(BadInputError, "Received: no arrays. Add x_train.", dataset=npz(x_train=None, x_test=None, **NO_Y))
    one_line(BadInputError, "pickled", dataset=npz(x_train=np.array([{}, []], object)))
    whole = npz().read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], pickle.dumps([1])):
        (tmp_path / "bad.npz").write_bytes(content)
        one_line(BadInputError, "bad.npz", dataset=tmp_path / "bad.npz")
    with open(tmp_path / "bad.npz", "wb") as file:
        np.save(file, np.zeros(3))
    one_line(BadInputError, "bad.npz", dataset=tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"y_train": np.arange(60) % 3 + 0.5}, "integers"),
        ({"y_train": np.arange(60) % 3 - 1}, "-1"),
        ({"y_train": np.eye(3, dtype=int)[np.arange(60) % 3]}, "argmax"),
        ({"y_train": np.arange(59) % 3}, "59 labels"),
        ({"y_test": np.arange(12)}, "11"),
        ({"x_train": np.full((60, 6, 6, 3), np.nan, np.float32)}, "NaN"),
        ({"x_train": np.full((60, 6, 6, 3), 300)}, "0..255"),
        ({"x_train": np.zeros((60, 6, 6, 3), complex)}, "complex"),
        ({"x_train": np.zeros((60, 36), np.uint8)}, "(60, 36)"),
        ({"x_train": np.zeros((60, 3, 8, 8), np.uint8)}, "transpose"),
        ({"x_train": np.zeros((0, 6, 6, 3), np.uint8), "y_train": np.zeros(0, int)}, "(0, 6, 6, 3)"),
        ({"x_test": np.zeros((12, 5, 5, 3), np.uint8)}, "one shape"),
    ],
)
def test_bad_arrays_are_named(npz: Callable[..., Path], changes: dict[str, np.ndarray], fragment: str) -> None:
    one_line(BadInputError, fragment, dataset=npz(**changes))


def test_fewer_images_than_a_batch_are_refused(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "54", "100", "--batch-size", dataset=npz(), batch_size=100)


def test_grayscale_and_float_archives_load(npz: Callable[..., Path]) -> None:
    grey = {name: (a[..., 0] * 1.0 if name[0] == "x" else a) for name, a in arrays().items()}
    data = load(config(npz(**grey)), 0)
    assert data.image_shape == (6, 6, 1)
    assert data.train.images.array.dtype == np.float32


# keras.datasets, CIFAR-10, tensorflow-datasets


def test_keras_datasets_and_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    a = arrays()
    pairs = (a["x_train"][..., 0], a["y_train"]), (a["x_test"][..., 0], a["y_test"])
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: pairs)
    data = load(config("mnist"), 0)
    assert data.image_shape == (6, 6, 1)
    assert len(data.test) == 12
    unlabelled = load(config("mnist", labels=False), 0)
    assert_unlabelled(unlabelled)
    assert list(ids(unlabelled.batches("test"))) == list(range(60, 72))

    def fail() -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    one_line(MissingInputError, "no route to host", ".npz", dataset="cifar10")


def test_real_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SHARED_DATA / "install_cifar10.py"
    if not script.exists():
        pytest.skip("no ../shared/data/install_cifar10.py beside this checkout")
    import keras

    spec = importlib.util.spec_from_file_location("install_cifar10", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pairs = []
    with np.load(SHARED_DATA / "cifar10-jpeg.npz") as archive:
        for split, count in (("train", 2000), ("test", 500)):
            part = {f"{split}_bytes": archive[f"{split}_bytes"]}
            part |= {f"{split}_{key}": archive[f"{split}_{key}"][: count + 1] for key in ("offsets",)}
            part |= {f"{split}_labels": archive[f"{split}_labels"][:count]}
            pairs.append(module.decode(part, split))
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: tuple(pairs))
    data = load(config("cifar10", augment="paper", preprocess="unit", batch_size=64), 0, (32, 32, 3))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (1800, 200, 500, 10)
    assert np.all(np.bincount(data.validation.labels) == 20)
    images, _ = taken(data.training_batches(0, 1))[0]
    assert 0.3 < images.mean() < 0.6


def fake_tfds(
    sizes: dict[str, int], shape: tuple[int | None, ...] = (None, None, 3), **features: Any
) -> types.SimpleNamespace:
    """Return a stand-in for tensorflow_datasets with one set, whose images hold their number in every pixel.

    Its features are an image and those given by name; a class label by default.
    """
    import tensorflow as tf

    features = features or {"label": types.SimpleNamespace(num_classes=3)}
    features["image"] = types.SimpleNamespace(shape=shape)

    class Builder:
        info = types.SimpleNamespace(
            splits={name: types.SimpleNamespace(num_examples=size) for name, size in sizes.items()}, features=features
        )

        def download_and_prepare(self) -> None:
            pass

        def as_dataset(self, split: str, shuffle_files: bool, decoders: Any) -> Any:
            assert not shuffle_files
            assert set(decoders.wanted) <= set(features)
            assert set(decoders.decoders) == {"image"}
            numbers = []
            for term in split.split("+"):
                name, _, places = term.rstrip("]").partition("[")
                begin, _, end = places.partition(":")
                numbers += range(int(begin or 0), int(end or sizes[name]))
            encoded = [tf.io.encode_png(np.full((4, 5, shape[2]), number, np.uint8)).numpy() for number in numbers]
            elements = {"image": encoded, "label": np.array(numbers) % 3}
            return tf.data.Dataset.from_tensor_slices({name: elements[name] for name in decoders.wanted})

    def builder(name: str) -> Builder:
        if name != "imagenette/small":
            raise ValueError(f"Dataset {name} not found.\nAvailable: many")
        return Builder()

    def partial(wanted: dict[str, bool], decoders: dict[str, Any]) -> types.SimpleNamespace:
        return types.SimpleNamespace(wanted=wanted, decoders=decoders)

    decode = types.SimpleNamespace(SkipDecoding=object, PartialDecoding=partial)
    return types.SimpleNamespace(builder=builder, decode=decode)


def test_tfds_streams_resume_and_stay_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50, "validation": 9}))
    settings = config("tfds:imagenette/small", batch_size=15, validation_fraction=0.1)
    data = load(settings, 0, (8, 8, 3))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (45, 5, 9, 3)
    train, validation = ids(data.batches("train")), ids(data.batches("validation"))
    assert sorted([*train, *validation]) == list(range(50))
    epochs = taken(data.training_batches(0, 3))
    assert epochs[0][0].shape == (15, 8, 8, 3)
    tf.random.set_seed(99)
    assert same(epochs[6:], taken(load(settings, 0, (8, 8, 3)).training_batches(2, 3)))
    assert not same(epochs[:3], epochs[3:6])
    assert not same(epochs[:3], taken(load(settings, 1, (8, 8, 3)).training_batches(0, 1)))
    assert sorted(ids(data.training_batches(0, 1))) == sorted(train)
    assert len(ids(data.batches("train", limit=7))) == 7
    limited = load(dataclasses.replace(settings, train_limit=20), 0, (8, 8, 3))
    assert len(limited.train) == len(ids(limited.batches("train"))) == 20


def test_a_tfds_set_without_labels_has_the_splits_of_one_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": 50, "test": 9}
    settings = config("tfds:imagenette/small", batch_size=15)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(sizes))
    labelled = load(settings, 0, (8, 8, 3))
    assert labelled.labelled
    assert np.array_equal(labels_of(labelled)["train"], ids(labelled.batches("train")) % 3)
    dropped = load(dataclasses.replace(settings, labels=False), 0, (8, 8, 3))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(sizes, objects=object()))
    for data in (dropped, load(settings, 0, (8, 8, 3))):
        assert_unlabelled(data)
        assert list(every_id(data)) == list(every_id(labelled))


def test_a_tfds_label_that_is_no_class_is_refused_or_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50, "test": 9}, label=object()))
    one_line(BadInputError, "--no-labels", dataset="tfds:imagenette/small", image_shape=(8, 8, 3))
    assert_unlabelled(load(config("tfds:imagenette/small", labels=False), 0, (8, 8, 3)))


def test_tfds_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    one_line(EnvironmentMismatchError, "pip install tensorflow-datasets", dataset="tfds:mnist")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds({"train": 50}))
    one_line(MissingInputError, "not found", dataset="tfds:nothing")
    one_line(BadInputError, "train", dataset="tfds:imagenette/small", image_shape=(8, 8, 3))
    one_line(BadInputError, "--image-size", dataset="tfds:imagenette/small")


def test_labels_can_be_kept_in_the_splits_of_data_without_them() -> None:
    """A teacher that is trained on labels must not see what its student is tested on without them."""
    without = load(DataConfig(labels=False), seed=3)
    kept = load(DataConfig(), seed=3, split_by_class=False)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(kept, split).rows, getattr(without, split).rows)
    assert kept.labelled
    assert not without.labelled
    assert set(kept.test.labels) == set(range(10))


def test_class_folders_are_read_in_one_order_with_and_without_labels(tmp_path: Path) -> None:
    """`cat-big` sorts before `cat/` as text, and behind `cat` as a folder."""
    for name in ("cat", "cat-big", "dog"):
        write_images(tmp_path / name)
    config = DataConfig(dataset=str(tmp_path), image_size=8, batch_size=2)
    kept = load(config, seed=0, split_by_class=False)
    without = load(dataclasses.replace(config, labels=False), seed=0)
    assert kept.train.images.paths == without.train.images.paths
