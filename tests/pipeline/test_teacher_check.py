"""A teacher that is no better than chance is refused, with what repairs it; following that works."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.config import DataConfig, RunConfig
from pbd.data import Dataset, load
from pbd.errors import BadInputError
from pbd.pipeline import built_in, prepare, teacher_check
from pbd.pipeline.teacher_check import check
from pbd.progress import ProgressDisplay

CLASSES, STEP = 4, 60
LABELS = np.arange(120) % CLASSES
PIXELS = np.clip(LABELS[:, None, None, None] * STEP + np.random.default_rng(0).normal(5, 5, (120, 8, 8, 3)), 0, 255)
IMAGES = PIXELS.astype(np.uint8)
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs check their teachers, unlike in other tests."""
    monkeypatch.setattr(teacher_check, "check", check)


def teacher(outputs: int = CLASSES, scale: float = 1.0, offset: float = 0.0) -> keras.Model:
    """Return a network that tells the brightness of images, pixel * scale + offset: output c is for 60 c."""
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(16, 3, padding="same", kernel_initializer="zeros", name="conv")(inputs)
    features = keras.layers.Concatenate()([inputs, features])
    mean = keras.layers.GlobalAveragePooling2D()(features)
    head = keras.layers.Dense(outputs)
    model = keras.Model(inputs, head(mean))
    centres = np.arange(outputs) * STEP * scale + offset
    kernel = np.zeros((19, outputs))
    kernel[:3] = 2 * centres / 3
    head.set_weights([kernel, -(centres**2)])
    return model


def data(relabel: Change = lambda y: y, pixels: Change = lambda x: x, **settings: Any) -> pbd.Data:
    return pbd.Data(train=(pixels(IMAGES), relabel(LABELS)), batch_size=16, **settings)


def dataset(source: pbd.Data) -> Dataset:
    return load(source.config, 0, (8, 8, 3), raw=source.raw_splits(source.labels))


def refusal(model: keras.Model, source: pbd.Data) -> str:
    with pytest.raises(BadInputError) as caught:
        check(model, dataset(source), allow_weak=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ORDER = np.array([2, 0, 3, 1])
CASES: list[tuple[keras.Model, pbd.Data, tuple[str, ...], pbd.Data]] = [
    (teacher(10), data(lambda y: y + 1), ("each label lowered by 1", "100.0%", "subtract 1"), data()),
    (teacher(10, offset=-STEP), data(), ("each label raised by 1", "add 1 to all"), data(lambda y: y + 1)),
    (teacher(), data(lambda y: ORDER[y]), ("another order", "0 as 1, 1 as 3, 2 as 0, 3 as 2"), data()),
    (teacher(scale=1 / 255), data(), ("With --preprocess unit it would be 100.0%",), data(preprocess="unit")),
    (teacher(scale=1 / 127.5, offset=-1), data(), ("--preprocess mobilenet",), data(preprocess="mobilenet")),
    (teacher(), data(preprocess="unit"), ("give --preprocess none",), data()),
    (teacher(), data(pixels=lambda x: x / 255), ("multiply the images by 255",), data(pixels=lambda x: x * 1.0)),
    (
        teacher(10, scale=1 / 255),
        data(lambda y: y + 1),
        ("--preprocess unit and each label lowered by 1", "give --preprocess unit; subtract 1"),
        data(preprocess="unit"),
    ),
]


@pytest.mark.parametrize(("model", "source", "fragments", "repaired"), CASES)
def test_what_repairs_the_teacher_is_named_and_works(
    model: keras.Model, source: pbd.Data, fragments: tuple[str, ...], repaired: pbd.Data
) -> None:
    message = refusal(model, source)
    for fragment in ("better than chance", "--allow-weak-teacher", *fragments):
        assert fragment in message
    assert check(model, dataset(repaired), allow_weak=False) == ()
    if "--no-labels" in message and "--preprocess" not in message:
        assert check(model, dataset(dataclasses.replace(source, labels=False)), allow_weak=False) == ()


def test_a_teacher_that_nothing_repairs_goes_on_with_the_flag_only(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model, source = teacher(), data(lambda y: np.random.default_rng(1).permutation(y))
    assert "check the teacher and the labels" in refusal(model, source)
    config = RunConfig(data=source.config).replace(run_dir=tmp_path / "run", include_unprofitable=True)
    with pytest.raises(BadInputError), prepare.prepare(config, model, source, ProgressDisplay()):
        pass
    assert not (tmp_path / "run").exists()
    with prepare.prepare(config.replace(allow_weak_teacher=True), model, source, ProgressDisplay()) as inputs:
        events = inputs.events
    assert sum(event.startswith("the teacher is no better than chance on the data: ") for event in events) == 1


@pytest.mark.parametrize("weights", [False, True])
def test_a_teacher_that_the_run_trains_needs_more_training(
    weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(built_in.BUILT_IN, "weak", lambda shape, classes: teacher(classes, scale=0.0))
    source = data()
    config = RunConfig(data=source.config).replace(run_dir=tmp_path / "run", include_unprofitable=True)
    config = config.replace(teacher="weak", teacher_epochs=0)
    if weights:
        teacher(scale=0.0).save_weights(tmp_path / "teacher.weights.h5")
        config = config.replace(teacher_weights=str(tmp_path / "teacher.weights.h5"))
    remedy = "check the teacher and the labels" if weights else "give more --teacher-epochs, or more images"
    with pytest.raises(BadInputError, match=remedy), prepare.prepare(config, None, source, ProgressDisplay()):
        pass


def test_a_network_that_always_predicts_the_most_frequent_class_is_weak() -> None:
    rare = data(lambda y: (np.arange(len(y)) % 10 == 0).astype(int))
    assert "chance gives" in refusal(teacher(2, scale=0.0), rare)


def test_validation_images_sorted_by_class_are_read_in_random_order() -> None:
    order = np.argsort(LABELS, kind="stable")
    source = pbd.Data(train=(IMAGES, LABELS), validation=(IMAGES[order], LABELS[order]), batch_size=8)
    images, labels = next(teacher_check._batches(dataset(source)))
    assert len(images) == teacher_check.AT_ONCE
    assert len(set(labels)) == CLASSES


def test_a_few_images_prove_nothing() -> None:
    few = teacher_check.FEWEST_IMAGES * 3 // 4
    source = pbd.Data(train=(IMAGES[:few], (LABELS[:few] + 1) % CLASSES), batch_size=4)
    assert check(teacher(), dataset(source), allow_weak=False) == ()


def test_a_teacher_that_may_be_good_needs_more_images() -> None:
    count, wrong = 30, slice(20, 29)
    seen = np.arange(count) % 2
    labels = seen.copy()
    labels[wrong] = 1 - labels[wrong]
    images = np.full((count, 8, 8, 3), 5.0) + STEP * seen[:, None, None, None]
    source = pbd.Data(train=(images[:2], labels[:2]), validation=(images, labels), batch_size=16)
    message = refusal(teacher(2), source)
    assert "give more labelled images" in message
    assert "With " not in message


def test_labels_from_1_with_as_many_outputs_have_a_remedy(tmp_path: Path) -> None:
    source = data(lambda y: y + 1)
    config = RunConfig(data=source.config).replace(run_dir=tmp_path / "run", include_unprofitable=True)
    with (
        pytest.raises(BadInputError, match=r"labels up to 4 .* count from 1: subtract 1"),
        prepare.prepare(config, teacher(), source, ProgressDisplay()),
    ):
        pass
    without = dataclasses.replace(source, labels=False)
    config = dataclasses.replace(config, data=without.config)
    with prepare.prepare(config, teacher(), without, ProgressDisplay()) as inputs:
        assert not inputs.dataset.labelled


def test_files_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=LABELS + 1)
    source = load(DataConfig(dataset=str(tmp_path / "data.npz"), batch_size=16), 0, (8, 8, 3))
    with pytest.raises(BadInputError, match="subtract 1"):
        check(teacher(10), source, allow_weak=False)
