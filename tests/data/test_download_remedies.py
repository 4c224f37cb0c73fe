"""Refusals of data sets that are downloaded or read as streams: each remedy is followed, and works."""

import gzip
import importlib
import io
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import Dataset, load, materialise
from pbd.data.sources import KERAS_CACHE, load_keras
from pbd.errors import MissingInputError
from tests.helpers.downloads import no_network
from tests.helpers.fake_tfds import fake_tfds
from tests.helpers.remedies import in_message, refusal

PIXELS, LABELS = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10


def as_downloaded(name: str, target: Path) -> None:
    """Write the file of a data set as its host has it, with few images; the archives of CIFAR hold no images at all."""
    if name == "mnist":
        np.savez(target, x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
    elif name == "fashion_mnist":
        for part in ("train", "t10k"):
            for kind, values, header in (("labels-idx1", LABELS, 8), ("images-idx3", PIXELS, 16)):
                with gzip.open(target / f"{part}-{kind}-ubyte.gz", "wb") as file:
                    file.write(bytes(header) + values.tobytes())
    else:
        with tarfile.open(target, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("content"), io.BytesIO())


@pytest.mark.parametrize("name", KERAS_CACHE)
def test_a_file_copied_to_the_cache_is_not_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found = importlib.import_module(f"keras.src.datasets.{name}"), list[str]()
    with no_network(tmp_path) as asked:
        message = refusal(lambda: load_keras(name), asked[0] if asked else "https://")
        assert asked[0] in message
        cached = in_message(r"Copy the file to \$KERAS_HOME/(\S+) \(", message)
        target = tmp_path / cached
        target.parent.mkdir(parents=True, exist_ok=True)
        if cached.endswith("/"):
            target.mkdir(exist_ok=True)
        as_downloaded(name, target)
        original = module.get_file
        monkeypatch.setattr(module, "get_file", lambda *a, **k: found.append(original(*a, **k)) or found[-1])
        if name.startswith("cifar"):
            with pytest.raises(MissingInputError, match="No such file"):  # the archive is empty
                load_keras(name)
            assert (Path(found[0]) / "content").exists()
        else:
            assert len(load_keras(name).train.images) == len(PIXELS)
        assert len(asked) == 1
    np.savez(tmp_path / "data.npz", x_train=PIXELS, y_train=LABELS)
    assert "or give the images as an .npz file." in message
    assert len(load(DataConfig(dataset=str(tmp_path / "data.npz"), batch_size=4), 0).train) > 0


def stream(name: str, **settings: Any) -> Dataset:
    return load(DataConfig(dataset=f"tfds:{name}", batch_size=4, **settings), 0, (8, 8, 3))


WHOLE = {"train": 50, "test": 9}
"""The splits of a set that is prepared here; its name is imagenette/small."""


def prepared(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], **features: Any) -> Any:
    """Install a stand-in for tensorflow-datasets, and return it."""
    module = fake_tfds(sizes, **features)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def test_the_package_that_is_missing_is_named_as_its_index_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = refusal(lambda: stream("imagenette/small"))
    package = in_message(r"pip install (\S+)$", message)
    assert re.sub("[-_.]+", "_", package) == "tensorflow_datasets"
    prepared(monkeypatch, WHOLE)
    stream("imagenette/small")


def test_a_set_is_named_as_it_is_called_or_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    module = prepared(monkeypatch, WHOLE)
    refusal(lambda: stream("imagenet/small"), "Check the name")
    stream("imagenette/small")
    builder, built = module.builder, set[str]()

    def builder_without_network(name: str) -> Any:
        found = builder(name)
        if name not in built:
            found.download_and_prepare = lambda: (_ for _ in ()).throw(OSError("no route\nto host"))
        return found

    module.builder = builder_without_network
    command = in_message(r"or prepare it with: (.*)$", refusal(lambda: stream("imagenette/small"))).split()
    assert command[:2] == ["tfds", "build"]
    built.add(command[2])
    stream("imagenette/small")


@pytest.mark.parametrize(
    ("sizes", "features", "remedy", "settings"),
    [
        ({"train": 50}, {}, "Choose another one.", {}),
        (WHOLE, {"label": object()}, "or give --no-labels if only its labels do not fit.", {"labels": False}),
        (WHOLE, {"label": object()}, "Choose another one,", {}),
    ],
)
def test_another_set_is_chosen_or_its_labels_are_not_used(
    sizes: dict[str, int],
    features: dict[str, Any],
    remedy: str,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared(monkeypatch, sizes, **features)
    refusal(lambda: stream("imagenette/small"), remedy)
    if not settings:
        prepared(monkeypatch, WHOLE)
    assert len(stream("imagenette/small", **settings).train) > 0


def test_images_of_several_sizes_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(monkeypatch, WHOLE)
    free = DataConfig(dataset="tfds:imagenette/small", batch_size=4)
    refusal(lambda: load(free, 0), "Give --image-size.")
    assert load(DataConfig(dataset=free.dataset, batch_size=4, image_size=8), 0).image_shape[:2] == (8, 8)


def test_images_that_do_not_fit_into_memory_are_read_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    import pbd

    images = np.zeros((20, 8, 8, 3), np.uint8)
    everything = tf.data.Dataset.from_tensor_slices((images, LABELS))
    monkeypatch.setattr(materialise.memory, "free_host_memory", lambda: 2 * images.nbytes - 1)
    refusal(lambda: pbd.Data(train=everything, batch_size=4), "Save the images as files and use pbd.Data.load,")
    for number, image in enumerate(images):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    assert pbd.Data.load(str(tmp_path), batch_size=4).source is not None
    assert pbd.Data(train=everything.take(16), batch_size=4), "or give fewer"
