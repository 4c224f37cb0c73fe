"""Refusals of data: each remedy is followed, and works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig, RunConfig
from pbd.data import Data, Dataset, load
from pbd.data.order import WorkerShare
from pbd.errors import PbdError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2
GOOD = {"train": (PIXELS, LABELS), "batch_size": 4}
NO_LABELS = {**GOOD, "train": (PIXELS, LABELS[:19]), "labels": False}
Settings = dict[str, Any]


def dataset(settings: Settings, image_shape: Any = None) -> Dataset:
    data = Data(**settings)
    loaded = load(data.config, 0, image_shape, raw=data.raw_splits(data.labels))
    loaded.check_trainable()
    return loaded


def train(images: np.ndarray, classes: Any = LABELS, **settings: Any) -> Settings:
    return {**GOOD, "train": (images, classes), **settings}


def one_hot() -> np.ndarray:
    return np.eye(2, dtype=int)[LABELS]


IN_MEMORY: list[tuple[Settings, str, Settings]] = [
    (train(PIXELS.reshape(20, -1)), "Use images.reshape(n, height, width, channels).", GOOD),
    (train(PIXELS.transpose(0, 3, 1, 2)), "Use x.transpose(0, 2, 3, 1).", GOOD),
    (train(PIXELS.astype(complex)), "Use images.astype('float32').", train(PIXELS.astype("float32"))),
    (train(PIXELS.astype(int) * 2), "use images.astype('float32')", train((PIXELS.astype(int) * 2).astype("float32"))),
    (train(np.where(LABELS, np.nan, 1.0)[:, None, None, None] * PIXELS), "Remove those images", GOOD),
    (train(PIXELS, one_hot()), "use labels.argmax(1)", train(PIXELS, one_hot().argmax(1))),
    (train(PIXELS, LABELS + 0.5), "labels.astype('int64')", train(PIXELS, (LABELS + 0.5).astype("int64"))),
    (train(PIXELS, LABELS[:19]), "or give --no-labels", NO_LABELS),
    (
        train(PIXELS, LABELS - 1),
        "np.unique(labels, return_inverse=True)[1]",
        train(PIXELS, np.unique(LABELS - 1, return_inverse=True)[1]),
    ),
    (
        train(PIXELS, LABELS.astype(str).astype(object)),
        "np.unique(labels, return_inverse=True)[1]",
        train(PIXELS, np.unique(LABELS.astype(str).astype(object), return_inverse=True)[1]),
    ),
    (train(PIXELS, test=(PIXELS, LABELS + 1)), "or give --no-labels", NO_LABELS),
    (train(PIXELS, test=PIXELS), "or give labels=False", train(PIXELS, test=PIXELS, labels=False)),
    (train(PIXELS, batch_size=17), "Give a smaller --batch-size", train(PIXELS, batch_size=14)),
    (train(PIXELS, test=(PIXELS[:, :4, :4], LABELS)), "Give --image-size", train(PIXELS, image_size=5)),
    (train(PIXELS, preprocess="unti"), "Did you mean 'unit'?", train(PIXELS, preprocess="unit")),
    (train(PIXELS / 255, preprocess="unit"), "Give --preprocess none", train(PIXELS / 255, preprocess="none")),
    (train(PIXELS / 255, preprocess="unit"), "multiply the images by 255", train(PIXELS / 1.0, preprocess="unit")),
    (train(PIXELS[..., :1], preprocess="vgg16"), "Give --preprocess unit", train(PIXELS[..., :1], preprocess="unit")),
    ({"batch_size": 4}, "Give train, or use Data.load", GOOD),
    ({**GOOD, "train": "images.npz"}, "Use pbd.Data.load for a path", GOOD),
    (
        {**GOOD, "train": ([PIXELS[0], PIXELS[1, :2]], [0, 1])},
        "each of one shape",
        {**GOOD, "train": (list(PIXELS), list(LABELS))},
    ),
    ({**GOOD, "train": (PIXELS.astype(object), LABELS)}, "Use np.stack", {**GOOD, "train": (np.stack(PIXELS), LABELS)}),
    ({**GOOD, "train": (PIXELS, LABELS, LABELS, LABELS)}, "Map it to a pair", GOOD),
    ({**GOOD, "train": ({"image": PIXELS},)}, "Map it to (x['image'], x['label'])", GOOD),
]


@pytest.mark.parametrize(("settings", "remedy", "followed"), IN_MEMORY)
def test_remedies_for_arrays_work(settings: Settings, remedy: str, followed: Settings) -> None:
    with pytest.raises(PbdError) as refusal:
        dataset(settings)
    assert remedy in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(dataset(followed).train) >= 4


@pytest.mark.parametrize(
    ("shape", "remedy", "followed", "fitting"),
    [
        ((8, 8, 3), "with --image-size 8", {**GOOD, "image_size": 8}, (8, 8, 3)),
        ((8, 4, 3), "Resize them.", train(np.zeros((20, 8, 4, 3), np.uint8)), (8, 4, 3)),
        ((6, 6, 1), "Convert the images", train(PIXELS.mean(-1)), (6, 6, 1)),
    ],
)
def test_remedies_for_other_shapes_work(shape: Any, remedy: str, followed: Settings, fitting: Any) -> None:
    with pytest.raises(PbdError, match=remedy):
        dataset(GOOD, shape)
    assert dataset(followed, fitting).image_shape == shape


def write_folder(root: Path, *classes: str) -> Path:
    import tensorflow as tf

    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(10):
            (root / name / f"{number}.png").write_bytes(tf.io.encode_png(PIXELS[number]).numpy())
    return root


def npz(root: Path, **arrays: np.ndarray) -> Path:
    np.savez(root / "data.npz", **arrays)
    return root / "data.npz"


Source = Callable[[Path], tuple[Path | str, dict[str, Any]]]
SOURCES: list[tuple[Source, str, Source]] = [
    (
        lambda root: (write_folder(root, "ant"), {}),
        "or give --no-labels",
        lambda root: (root, {"labels": False}),
    ),
    (
        lambda root: (write_folder(root, "ant", "bee", "."), {}),
        "or give --no-labels",
        lambda root: (root, {"labels": False}),
    ),
    (
        lambda root: (write_folder(root, "train/ant", "train/bee", "test/ant"), {}),
        "or give --no-labels",
        lambda root: (root, {"labels": False}),
    ),
    (
        lambda root: ((write_folder(root, "ant", "bee") / "cow").mkdir() or root, {}),
        "Add images, or remove the folder",
        lambda root: ((root / "cow").rmdir() or root, {}),
    ),
    (
        lambda root: (write_folder(root, "ant", "bee", "."), {}),
        "Move the images into class folders,",
        lambda root: ([path.rename(root / "ant" / f"more{path.name}") for path in root.glob("*.png")] and root, {}),
    ),
    (
        lambda root: (write_folder(root, "train/ant", "train/bee", "test/ant"), {}),
        "Make them alike,",
        lambda root: (write_folder(root, "test/bee"), {}),
    ),
    (
        lambda root: (write_folder(root, "data/ant", "data/bee").joinpath("."), {}),
        "/data' if the classes are in it,",
        lambda root: (root / "data", {}),
    ),
    (
        lambda root: (npz(root, train_images=PIXELS, images=PIXELS, y_train=LABELS), {}),
        "Name the one to use x_train.",
        lambda root: (npz(root, x_train=PIXELS, images=PIXELS, y_train=LABELS), {}),
    ),
    (
        lambda root: (write_folder(root, "ant", "bee"), {"image_size": None}),
        "Give --image-size",
        lambda root: (root, {"image_size": 8}),
    ),
    (
        lambda root: (npz(root, x_train=PIXELS, y_train=LABELS, x_test=PIXELS), {}),
        "Add y_test, or give --no-labels",
        lambda root: (root / "data.npz", {"labels": False}),
    ),
    (
        lambda root: (npz(root, pictures=PIXELS), {}),
        "Received: pictures. Add x_train.",
        lambda root: (npz(root, x_train=PIXELS), {}),
    ),
    (
        lambda root: (npz(root, x_train=np.array([{}, []], object)), {}),
        "Save plain number arrays",
        lambda root: (npz(root, x_train=PIXELS), {}),
    ),
    (
        lambda root: (((root / "data.npz").write_bytes(b"") and root) or root / "data.npz", {}),
        "save it again with numpy.savez",
        lambda root: (npz(root, x_train=PIXELS), {}),
    ),
    (
        lambda root: (np.save(root / "data.npy", PIXELS) or root / "data.npy", {}),
        "Save it with numpy.savez",
        lambda root: (npz(root, x_train=PIXELS), {}),
    ),
    (
        lambda root: (root / "absent.npz", {}),
        "Check the path",
        lambda root: (npz(root, x_train=PIXELS), {}),
    ),
    (lambda _: ("digit", {}), "Did you mean 'digits'?", lambda _: ("digits", {})),
]


@pytest.mark.parametrize(("source", "remedy", "followed"), SOURCES)
def test_remedies_for_files_work(tmp_path: Path, source: Source, remedy: str, followed: Source) -> None:
    def loaded(origin: Source) -> Dataset:
        name, settings = origin(tmp_path)
        return load(DataConfig(dataset=str(name), **{"batch_size": 4, "image_size": 8, **settings}), 0)

    with pytest.raises(PbdError) as refusal:
        loaded(source)
    assert remedy in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(loaded(followed).train) >= 4


def test_remedies_for_python_datasets_work() -> None:
    import keras
    import tensorflow as tf

    pairs = tf.data.Dataset.from_tensor_slices((PIXELS, LABELS))
    sizes = tf.TensorSpec((None, None, 3), tf.uint8)
    free = tf.data.Dataset.from_generator(lambda: iter(PIXELS), output_signature=sizes)
    unknown = tf.data.Dataset.from_generator(lambda: iter(PIXELS), output_signature=tf.TensorSpec(None, tf.uint8))
    dicts = pairs.map(lambda x, y: {"image": x, "label": y})

    class Endless(keras.utils.PyDataset):
        def __getitem__(self, index: int) -> Any:
            return PIXELS[index : index + 1], LABELS[index : index + 1]

    class Counted(Endless):
        def __len__(self) -> int:
            return len(PIXELS)

    for broken, remedy, followed in [
        (pairs.repeat(), "Remove .repeat()", pairs),
        (free, "Use tf.image.resize", free.map(lambda x: tf.ensure_shape(tf.image.resize(x, (6, 6)), (6, 6, 3)))),
        (unknown, "Use tf.ensure_shape", unknown.map(lambda x: tf.ensure_shape(x, (6, 6, 3)))),
        (dicts, "Map it to (x['image'], x['label'])", dicts.map(lambda x: (x["image"], x["label"]))),
        (pairs.take(0), "Give another split", pairs),
        (Endless(), "Add it", Counted()),
    ]:
        with pytest.raises(PbdError) as refusal:
            Data(train=broken, batch_size=4)
        assert remedy in str(refusal.value)
        assert len(dataset({"train": followed, "batch_size": 4}).train) >= 4


def test_images_of_other_channels_are_saved_in_an_archive(tmp_path: Path) -> None:
    def loaded(name: Path) -> Dataset:
        return load(DataConfig(dataset=str(name), batch_size=4), 0, (6, 6, 4))

    with pytest.raises(PbdError, match=r"Save the images in an .npz file: numpy.savez\((.*)\)\.$") as refusal:
        loaded(write_folder(tmp_path / "images", "ant", "bee"))
    call = str(refusal.value).partition("file: ")[2].rstrip(".")
    deep = np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1)
    called = call.replace("x_train=...", "x_train=deep").replace("y_train=...", "y_train=LABELS")
    eval(called, {"numpy": np, "FILE": tmp_path / "data.npz", "deep": deep, "LABELS": LABELS})
    assert loaded(tmp_path / "data.npz").image_shape == (6, 6, 4)


def test_a_batch_has_an_image_for_each_worker_that_shares_it() -> None:
    share = WorkerShare(index=0, count=6)
    with pytest.raises(PbdError, match=r"--batch-size 4\. Raise it, or give --parallel task\.$"):
        dataset(GOOD).shared(share)
    assert dataset({**GOOD, "batch_size": 6}).shared(share).worker == share
    assert RunConfig.of(parallel="task").execution.parallel == "task", "each worker then reads whole batches"


def test_a_split_is_named_as_it_is_called() -> None:
    with pytest.raises(PbdError, match=r"Did you mean 'test'\?"):
        next(iter(dataset(GOOD).batches("tset")))
    assert next(iter(dataset(GOOD).batches("test")))
