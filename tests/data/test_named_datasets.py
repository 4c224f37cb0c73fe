"""Datasets by name or path: the digits, those of Keras, the real CIFAR-10, and names that stand for nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pbd.data import absolute, load, sources
from pbd.errors import BadInputError, MissingInputError
from tests.helpers.batches import assert_unlabelled, ids, taken
from tests.helpers.numbered_images import arrays, config, one_line

pytestmark = pytest.mark.usefixtures("few_threads")

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"


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


@pytest.mark.parametrize("name", ["digits", "cifar10", "tfds:mnist"])
def test_names_stay_as_they_are_in_another_working_directory(name: str) -> None:
    assert absolute(name) == name


def test_paths_mean_the_same_in_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("images.npz") == str(tmp_path / "images.npz")
    assert absolute(config("~/images.npz").dataset) == str(Path.home() / "images.npz")


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    one_line(MissingInputError, "'cifar10'", dataset="cifar-10")
    one_line(MissingInputError, "no.npz", dataset=tmp_path / "no.npz")
    one_line(MissingInputError, "nowhere", dataset=tmp_path / "nowhere")
    (tmp_path / "data.csv").write_text("1,2")
    one_line(BadInputError, ".npz", dataset=tmp_path / "data.csv")


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
    assert sorted(ids(unlabelled.batches("test"))) == list(range(60, 72))

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
