"""Refusals of teachers, downloads included: each remedy is followed, and works."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import run
from pbd.blockwise import context
from pbd.config import DataConfig, RunConfig, TeacherConfig
from pbd.data import load
from pbd.networks import graph
from pbd.pipeline import built_in, input_checks, prepare, teachers
from pbd.pipeline.api import _check_given_once
from tests.helpers.downloads import no_network
from tests.helpers.ordinary_user import ordinary_user
from tests.helpers.remedies import in_message, refusal
from tests.pipeline.test_teachers import source

SHAPE, CLASSES = (8, 8, 1), 3


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a teacher and its weights."""
    model = built_in.digits_cnn(SHAPE, CLASSES)
    model.save(tmp_path / "teacher.keras")
    model.save_weights(tmp_path / "teacher.weights.h5")
    (tmp_path / "models").mkdir()
    shutil.copy(tmp_path / "teacher.keras", tmp_path / "models")
    with ordinary_user():
        yield tmp_path


Settings = Callable[[Path], dict[str, Any]]
TEACHERS: list[tuple[Settings, str, Settings]] = [
    (
        lambda folder: {"teacher": "https://host/teacher.keras"},
        "Download it first.",
        lambda folder: {"teacher": folder / "teacher.keras"},
    ),
    (
        lambda folder: {"teacher": folder / "teacher.keras", "teacher_weights": folder / "teacher.weights.h5"},
        "Leave them out.",
        lambda folder: {"teacher": folder / "teacher.keras"},
    ),
    (
        lambda folder: {"teacher": folder / "taecher.keras"},
        "Check the path.",
        lambda folder: {"teacher": folder / "teacher.keras"},
    ),
    (
        lambda folder: {"teacher": folder / "models"},
        "Name the file in it.",
        lambda folder: {"teacher": folder / "models" / "teacher.keras"},
    ),
    (
        lambda folder: {"teacher_weights": folder / "taecher.weights.h5"},
        "Check the path.",
        lambda folder: {"teacher_weights": folder / "teacher.weights.h5"},
    ),
    (
        lambda folder: {"teacher_weights": "imagenets"},
        "must be imagenet or a .weights.h5 file.",
        lambda folder: {"teacher": "VGG16", "teacher_weights": "imagenet"},
    ),
    (lambda folder: {"teacher": "VGG_16"}, "Did you mean 'VGG16'?", lambda folder: {"teacher": "VGG16"}),
]


@pytest.mark.parametrize(("refused", "remedy", "followed"), TEACHERS)
def test_remedies_for_teachers_work(folder: Path, refused: Settings, remedy: str, followed: Settings) -> None:
    refusal(source(**refused(folder)).check, remedy)
    source(**followed(folder)).check()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("teacher.keras", "teacher"), ("teacher.weights.h5", "teacher_weights"), ("models", "teacher")],
)
def test_teachers_are_read_after_their_permissions_are_changed(folder: Path, name: str, setting: str) -> None:
    closed = folder / name
    given = source(**{setting: closed / "teacher.keras" if closed.is_dir() else closed})
    closed.chmod(0)
    assert str(closed) in refusal(given.check, "Check its permissions, and those of the folders above it.")
    closed.chmod(0o700)
    given.check()


def test_a_run_directory_on_shared_storage_is_seen_by_every_worker(folder: Path) -> None:
    """The storage of another host is played by a folder that is not there."""
    elsewhere = str(folder / "elsewhere" / "teacher.keras")
    refusal(lambda: context.load_teacher(elsewhere), "Give a --run-dir on storage that all hosts share.")
    assert context.load_teacher(str(folder / "teacher.keras"))
    context.forget()


def two_formats(data_format: str, nested: bool) -> keras.Model:
    """Return a network in which `data_format` changes nothing but the order of the axes."""
    axis, shape = (1, (SHAPE[2], *SHAPE[:2])) if data_format == "channels_first" else (-1, SHAPE)
    inputs = keras.Input(shape)
    body = [
        keras.layers.Conv2D(8, 3, padding="same", data_format=data_format),
        keras.layers.BatchNormalization(axis=axis),
        keras.layers.GlobalAveragePooling2D(data_format=data_format),
    ]
    x = inputs
    for layer in [keras.Sequential(body)] if nested else body:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


@pytest.mark.parametrize("nested", [True, False])
def test_a_network_with_the_channels_first_is_built_again(nested: bool, tmp_path: Path) -> None:
    """The images are given as the data of pbd have them; the message must name the network, not the images."""
    first, last = (two_formats(data_format, nested) for data_format in ("channels_first", "channels_last"))
    first.save(tmp_path / "first.keras")
    for given in (teachers.ModelTeacher(first), source(teacher=tmp_path / "first.keras")):
        refusal(given.image_shape, "Build it with channels_last, copy the weights by set_weights")
    last.set_weights(first.get_weights())
    assert teachers.ModelTeacher(last).image_shape() == SHAPE


def test_a_network_that_moves_its_channels_takes_images_with_the_channels_last() -> None:
    inputs = keras.Input(SHAPE)
    x = two_formats("channels_first", nested=True)(keras.layers.Permute((3, 1, 2))(inputs))
    assert teachers.ModelTeacher(keras.Model(inputs, x)).image_shape() == SHAPE


@pytest.mark.parametrize(
    ("model", "data", "settings", "remedy", "followed"),
    [
        ("model", None, {"teacher": "a.keras"}, "give either the model or its name", ("model", None, {})),
        ("model", None, {"teacher": "a.keras"}, "or its name", (None, None, {"teacher": "a.keras"})),
        (
            None,
            "data",
            {"batch_size": 8},
            "give it to pbd.Data",
            (None, pbd.Data(train=np.zeros((9, 8, 8, 1), np.uint8), batch_size=8), {}),
        ),
    ],
)
def test_settings_are_given_once(model: Any, data: Any, settings: dict[str, Any], remedy: str, followed: Any) -> None:
    refusal(lambda: _check_given_once(model, data, settings), remedy)
    _check_given_once(*followed)


@pytest.mark.parametrize(
    ("settings", "remedy", "followed"),
    [
        ({"block": "two_layers"}, "Did you mean 'two_layer'?", {"block": "two_layer"}),
        ({"parallel": "data", "block": "two_layer"}, "Give --parallel task", {"parallel": "task"}),
        ({"parallel": "data", "block": "two_layer"}, "or --block decoupled_r2.", {"block": "decoupled_r2"}),
    ],
)
def test_blocks_that_fit_are_chosen(settings: dict[str, Any], remedy: str, followed: dict[str, Any]) -> None:
    refusal(lambda: input_checks.check_designs(RunConfig.of(**settings)), remedy)
    input_checks.check_designs(RunConfig.of(**settings | followed))


def test_images_too_small_for_a_network_are_resized(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.zeros((40, 4, 4, 1), np.uint8), y_train=np.arange(40) % CLASSES)

    def built(**settings: Any) -> keras.Model:
        config = DataConfig(dataset=str(tmp_path / "data.npz"), batch_size=8, **settings)
        return built_in.build(TeacherConfig(), load(config, 0).image_shape, CLASSES, seed=0)

    message = refusal(built, "Give other images, or another --image-size")
    assert "\x1b" not in message
    assert built(image_size=8).input_shape == (None, *SHAPE)


def small_vgg16(input_shape: tuple[int, ...], weights: str | None, **_: object) -> keras.Model:
    """Return a small network in place of one of Keras, whose weights are downloaded in the same way."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(input_shape)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(inputs)), name="vgg16")
    if weights == "imagenet":
        origin = "https://example.org/vgg16.weights.h5"
        model.load_weights(keras.utils.get_file("vgg16.weights.h5", origin, cache_subdir="models"))
    return model


def test_weights_that_cannot_be_downloaded_come_from_the_cache_or_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.applications, "VGG16", small_vgg16)
    monkeypatch.chdir(tmp_path)
    config = RunConfig.of(teacher="VGG16", teacher_weights="imagenet").teacher
    with no_network(tmp_path / "keras") as asked:
        (tmp_path / "keras").mkdir()
        message = refusal(lambda: built_in.build(config, (8, 8, 3), CLASSES, seed=0))
        assert asked[0] in message
        assert "Temporary failure in name resolution" in message
        cache = in_message(r"Copy the file into \$KERAS_HOME/(\w+) \(default", message)
        small_vgg16((8, 8, 3), None).save_weights(tmp_path / "keras" / cache / Path(asked[0]).name)
        built = built_in.build(config, (8, 8, 3), CLASSES, seed=0)
        built.save(tmp_path / "FILE.keras")
        flags = in_message(r"give (--teacher FILE)\.$", message).replace("FILE", "FILE.keras").split()
        given = source(**vars(run.parse(flags).teacher))
        given.check()
        assert given.load(lambda: pytest.fail("it is trained")).count_params() == built.count_params()
        assert len(asked) == 1


def test_a_built_in_teacher_without_labels_is_replaced_by_a_file(folder: Path) -> None:
    data = pbd.Data(train=np.zeros((40, *SHAPE), np.uint8), batch_size=8)
    dataset = load(data.config, 0, SHAPE, raw=data.raw_splits(False))
    message = refusal(
        lambda: prepare._labelled(data.config, data, dataset), "Give a trained model with --teacher FILE."
    )
    config = run.parse([in_message(r"(--teacher) FILE", message), str(folder / "teacher.keras")])
    given = source(teacher=config.teacher.teacher)
    given.load(lambda: prepare._labelled(data.config, data, dataset))


def head(*layers: keras.Layer) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


Dense = keras.layers.Dense
OUTPUTS: list[tuple[Any, int | None, str, Any, int | None]] = [
    (lambda: Dense(1, activation="tanh"), 2, "Train it with Dense(1, activation='sigmoid'),", "message", 2),
    (lambda: Dense(1, activation="tanh"), 2, "or with an output for each class.", lambda: Dense(2), 2),
    (lambda: Dense(1), 3, "Correct the labels,", lambda: Dense(1), 2),
    (lambda: Dense(1), 3, "or give a teacher with an output for each class.", lambda: Dense(3), 3),
    (lambda: Dense(2), 3, "Correct the labels,", lambda: Dense(2), 2),
    (lambda: Dense(2), 3, "give a teacher for these classes,", lambda: Dense(3), 3),
    (lambda: Dense(2), 3, "or give --no-labels.", lambda: Dense(2), None),
]


@pytest.mark.parametrize(("layer", "classes", "remedy", "followed", "then"), OUTPUTS)
def test_outputs_and_labels_are_made_to_fit(
    layer: Any, classes: int | None, remedy: str, followed: Any, then: int | None
) -> None:
    def check(model: keras.Model, classes: int | None) -> None:
        labels = None if classes is None else np.arange(48) % classes
        images = np.zeros((48, *SHAPE), np.uint8)
        data = pbd.Data(train=images if labels is None else (images, labels), batch_size=8)
        input_checks.check_outputs(graph.flatten(model), load(data.config, 0, SHAPE, raw=data.raw_splits(data.labels)))

    message = refusal(lambda: check(head(layer()), classes), remedy)
    named = in_message(r"Train it with (Dense\(.*?\)),", message) if followed == "message" else ""
    check(head(eval(named, {"Dense": Dense}) if named else followed()), then)


def test_a_loss_that_needs_no_labels_is_chosen() -> None:
    data = pbd.Data(train=np.zeros((40, *SHAPE), np.uint8), batch_size=8)
    dataset = load(data.config, 0, SHAPE, raw=data.raw_splits(data.labels))
    message = refusal(lambda: input_checks.check_labels(RunConfig.of(fine_tune_loss="mixed"), dataset))
    flag = in_message(r"^(--[\w-]+) mixed", message)
    for loss in in_message(r"Give (.*)\.$", message).split(" or "):
        input_checks.check_labels(run.parse([flag, loss]), dataset)
