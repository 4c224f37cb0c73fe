"""The remedy in each refusal of a model file or of a network works if it is followed."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from pbd.errors import BadInputError, MissingInputError
from pbd.networks import file_remedies, files, graph
from pbd.pipeline import built_in, teacher_files, teachers
from tests.helpers.damaged_files import repacked
from tests.pipeline.test_teachers import source

L = keras.layers
pytestmark = pytest.mark.usefixtures("light_checks")


@keras.saving.register_keras_serializable("test_file_remedies")
class Halved(L.Layer):
    """The layer that replaces a Lambda."""

    def call(self, x: Any) -> Any:
        return x / 2


def network(middle: Callable[[], keras.Layer], seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = middle()(L.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def as_keras_2(path: Path, layer: str, setting: str) -> None:
    """Change a file to one of Keras 2: its version, and a setting of a layer that Keras 3 does not know."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for entry in config["config"]["layers"]:
            if entry["class_name"] == layer:
                entry["config"][setting] = 1
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.11.0"


def refusal(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        files.load(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert "safe_mode" not in message
    return message


def assert_same(one: keras.Model, other: keras.Model) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(one(images), other(images))


def in_message(pattern: str, message: str) -> str:
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]


@pytest.mark.parametrize(
    ("layer", "setting"),
    [(lambda: L.DepthwiseConv2D(3), "groups"), (lambda: L.BatchNormalization(), "fused"), (L.ReLU, "alpha")],
)
def test_a_keras_2_file_is_converted_as_its_refusal_says(
    layer: Callable[[], keras.Layer], setting: str, tmp_path: Path
) -> None:
    old = network(layer)
    old.save(tmp_path / "old.h5")
    as_keras_2(tmp_path / "old.h5", type(old.layers[2]).__name__, setting)
    message = refusal(tmp_path / "old.h5")
    assert f"nrecognized keyword arguments passed to {type(old.layers[2]).__name__}: {{'{setting}': 1}}" in message
    assert "Keras 2.11.0 wrote it" in message
    rebuilt = network(layer, seed=2)
    rebuilt.load_weights(tmp_path / in_message(r"load_weights\('(.*?)'\)", message))
    assert_same(rebuilt, old)


def test_a_keras_archive_of_keras_2_is_recognised(tmp_path: Path) -> None:
    network(L.ReLU).save(tmp_path / "new.keras")

    def change(parts: dict[str, bytes]) -> None:
        parts["metadata.json"] = json.dumps({"keras_version": "2.15.0"}).encode()
        parts["config.json"] = parts["config.json"].replace(b'"negative_slope"', b'"old_slope"')

    repacked(tmp_path / "new.keras", tmp_path / "old.keras", change)
    message = refusal(tmp_path / "old.keras")
    assert "old_slope" in message
    assert "Keras 2.15.0 wrote it. Save it with that Keras as old.h5." in message


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_becomes_a_registered_layer(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lambda{suffix}"
    old = network(lambda: L.Lambda(lambda x: x / 2))
    old.save(path)
    rebuilt = network(Halved, seed=2)
    rebuilt.load_weights(tmp_path / in_message(r"load_weights\('(.*?)'\)", refusal(path)))
    assert_same(rebuilt, old)
    files.check_known(rebuilt)


@pytest.mark.parametrize(("right", "wrong"), [(".keras", ".h5"), (".h5", ".keras"), (".h5", ".model"), (".keras", "")])
def test_a_file_with_the_suffix_of_another_format_is_renamed(right: str, wrong: str, tmp_path: Path) -> None:
    model = network(L.ReLU)
    model.save(tmp_path / f"a{right}")
    wrong_path = tmp_path / f"model{wrong}"
    shutil.move(tmp_path / f"a{right}", wrong_path)
    target = tmp_path / in_message(r"Rename it to (.*)\.$", refusal(wrong_path))
    wrong_path.rename(target)
    assert_same(files.load(str(target)), model)


def test_weights_alone_are_given_as_such(tmp_path: Path) -> None:
    model = built_in.digits_cnn((8, 8, 3), 2)
    model.save_weights(tmp_path / "digits.weights.h5")
    message = refusal(tmp_path / "digits.weights.h5")
    assert "it holds weights without a network" in message
    assert "--teacher NAME --teacher-weights FILE" in message
    given = source(teacher="digits_cnn", teacher_weights=str(tmp_path / "digits.weights.h5"))
    given.check()
    config = given.config  # type: ignore[attr-defined]
    assert_same(built_in.build(config, (8, 8, 3), 2, seed=0), model)


def test_a_saved_model_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(MissingInputError, match=r"a SavedModel folder.*model.save\('teacher.keras'\)"):
        source(teacher=str(tmp_path / "folder")).check()
    network(L.ReLU).save(tmp_path / "teacher.keras")
    source(teacher=str(tmp_path / "teacher.keras")).check()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def diverged(path: Path) -> None:
    """Replace the file by one of the same network with values that are not finite."""
    model = network(L.ReLU)
    model.layers[-1].bias.assign([np.nan, 0.0])
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)


def load_or_fill(path: Path) -> keras.Model:
    """Load a model file, or the weights of a network that is built anew."""
    if not path.name.endswith(".weights.h5"):
        return files.load(str(path))
    model = network(L.ReLU, seed=2)
    files.load_weights(model, str(path))
    return model


@pytest.mark.parametrize("name", ["teacher.keras", "teacher.h5", "teacher.weights.h5"])
@pytest.mark.parametrize(
    ("damage", "remedy"),
    [(cut_off, "Copy the file again, or save the"), (diverged, "give weights from before that, or train it again.")],
)
def test_a_damaged_file_is_copied_or_saved_again(
    name: str, damage: Callable[[Path], None], remedy: str, tmp_path: Path
) -> None:
    model, path = network(L.ReLU), tmp_path / name
    model.save_weights(path) if name.endswith(".weights.h5") else model.save(path)
    shutil.copy(path, tmp_path / "original")
    damage(path)
    with pytest.raises(BadInputError) as caught:
        load_or_fill(path)
    message = str(caught.value)
    assert remedy in message
    assert "\n" not in message
    shutil.copy(tmp_path / "original", path)
    assert_same(load_or_fill(path), model)
    if damage is cut_off:
        call, file = re.search(r"with Keras 3: (model.*\('(.*)'\))\.$", message).group(1, 2)  # type: ignore[union-attr]
        with contextlib.chdir(tmp_path):
            eval(call, {"model": model})
            assert_same(load_or_fill(tmp_path / file), model)


def test_a_host_with_more_memory_loads_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(L.ReLU)
    model.save(tmp_path / "teacher.keras")
    with monkeypatch.context() as small:
        small.setattr("pbd.system.memory.free_host_memory", lambda: 1_000)
        assert refusal(tmp_path / "teacher.keras").endswith("Use a host with more free memory.")
    assert_same(files.load(str(tmp_path / "teacher.keras")), model)


def test_weights_of_the_same_network_are_given(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(5)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(BadInputError, match="of the same network writes, for as many classes") as caught:
        load_or_fill(tmp_path / "other.weights.h5")
    name = in_message(r"save_weights\('(.*?)'\)", str(caught.value))
    network(L.ReLU).save_weights(tmp_path / name)
    assert_same(load_or_fill(tmp_path / name), network(L.ReLU))


def test_weights_of_a_network_with_more_layers_are_refused(tmp_path: Path) -> None:
    def deep(count: int) -> keras.Model:
        inputs = x = keras.Input((8, 8, 3))
        for _ in range(count):
            x = L.Dropout(0.1, seed=1)(L.Conv2D(3, 3, padding="same")(x))
        return keras.Model(inputs, x)

    for count in (1, 2):
        deep(count).save_weights(tmp_path / f"{count}.weights.h5")
    files.load_weights(deep(1), str(tmp_path / "1.weights.h5"))
    with pytest.raises(BadInputError, match="the file has 4 weights, the network 2"):
        files.load_weights(deep(1), str(tmp_path / "2.weights.h5"))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("package", [None, "elsewhere"])
def test_a_class_that_keras_does_not_know_is_registered_and_given(
    package: str | None, suffix: str, tmp_path: Path
) -> None:
    """It was not registered as the file was written, or it was, in a package that is not imported."""

    class Thirds(L.Layer):
        def call(self, x: Any) -> Any:
            return x / 3

    known = dict(keras.saving.get_custom_objects())
    if package:
        keras.saving.register_keras_serializable(package)(Thirds)
    old, file = network(Thirds), tmp_path / f"teacher{suffix}"
    old.save(file)
    forget_classes(known)
    message = refusal(file)
    names = {"keras": keras, "FILE": file, "Thirds": Thirds}
    try:
        eval(in_message(r"Decorate the class with @(keras\S*\(\)),", message), names)(Thirds)
        model = eval(in_message(r"load the file with (keras.*\}\)),", message), names)
        teachers.ModelTeacher(model).check()
        assert_same(model, old)
    finally:
        forget_classes(known)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_function_that_keras_does_not_know_is_registered_and_given(suffix: str, tmp_path: Path) -> None:
    def thirds(x: Any) -> Any:
        return x / 3

    old, file = network(lambda: L.Activation(thirds)), tmp_path / f"teacher{suffix}"
    old.save(file)
    message = refusal(file)
    names, known = {"keras": keras, "FILE": file, "thirds": thirds}, dict(keras.saving.get_custom_objects())
    try:
        eval(in_message(r"Decorate the function with @(keras\S*\(\)),", message), names)(thirds)
        model = eval(in_message(r"load the file with (keras.*\}\)),", message), names)
        assert_same(model, old)
    finally:
        forget_classes(known)


def forget_classes(known: dict[str, Any]) -> None:
    """Let Keras know only these classes, as in a process that has registered no other."""
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(known)


def test_a_network_without_its_classifier() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, L.Conv2D(4, 3)(inputs))
    with pytest.raises(BadInputError, match="add the trained classifier") as caught:
        graph.image_shape(model)
    remedy = in_message(r"classifier: (.*)\.$", str(caught.value))
    assert graph.image_shape(eval(remedy, {"keras": keras, "model": model, "CLASSES": 2})) == (8, 8, 3)


def test_a_sequential_that_is_not_built() -> None:
    model = keras.Sequential([L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2)])
    with pytest.raises(BadInputError, match=r"Sequential 'sequential.*', not built") as caught:
        graph.image_shape(model)
    names = {"model": model, "HEIGHT": 8, "WIDTH": 8, "CHANNELS": 3}
    eval(in_message(r"Call (model\.build\(.*?\)\))", str(caught.value)), names)
    assert graph.image_shape(model) == (8, 8, 3)


def test_the_version_is_read_from_both_formats(tmp_path: Path) -> None:
    for suffix in (".keras", ".h5"):
        network(L.ReLU).save(tmp_path / f"model{suffix}")
        assert file_remedies.keras_version(str(tmp_path / f"model{suffix}")) == keras.version()
    assert teacher_files.is_file("model.keras")
