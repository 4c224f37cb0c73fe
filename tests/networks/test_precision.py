"""Networks of half precision, and global settings of Keras that differ from those of the network."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

import pbd
from pbd.compression import ensemble
from pbd.compression.pruning import refitting
from pbd.deploy import portable
from pbd.networks import graph, precision
from pbd.pipeline import remote_tasks

HALF = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
CHEAP = {"executor": "serial", "isolate": False, "costs": "macs", "epochs": 1, "fine_tune_epochs": 1}


def network(policy: str) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = x = keras.Input((8, 8, 3), dtype="float32")
    for name, filters in (("a", 8), ("b", 8)):
        x = layers.Conv2D(filters, 3, padding="same", dtype=policy, data_format="channels_last", name=name)(x)
        x = layers.ReLU(dtype=policy)(layers.BatchNormalization(dtype=policy, axis=-1)(x))
    x = layers.GlobalAveragePooling2D(dtype=policy, data_format="channels_last")(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32", name="b_head")(x))


@pytest.fixture
def data() -> pbd.Data:
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    return pbd.Data(train=images, batch_size=16)


@pytest.mark.parametrize("policy", HALF)
def test_a_network_is_worked_on_in_float32_and_restored(policy: str) -> None:
    model = graph.flatten(network(policy))
    half = precision.policies(model)
    assert set(half.values()) == {policy}
    assert "b_head" not in half
    single = precision.in_float32(model)
    assert {layer.dtype_policy.name for layer in single.layers} == {"float32"}
    images = np.random.default_rng(1).uniform(0, 1, (4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(single(images), np.asarray(model(images), "float32"), atol=0.05)
    again = precision.restored(single, half, {layer.name for layer in model.layers}, ())
    assert precision.policies(again) == half
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(np.asarray(one, "float32"), np.asarray(other, "float32"))


def test_a_network_of_float32_is_not_copied() -> None:
    model = graph.flatten(network("float32"))
    assert precision.in_float32(model) is model
    assert precision.restored(model, {}, {layer.name for layer in model.layers}, ()) is model


@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_the_scores_of_a_classifier_are_computed_in_float32(activation: str) -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Rescaling(1 / 255, name="unit")(inputs))
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    scores = keras.layers.Dropout(0.1, name="dropped")(keras.layers.Dense(5, name="head")(x))
    model = keras.Model(inputs, keras.layers.Activation(activation, name="answers")(scores))
    half = precision.mixed_classifier(graph.flatten(model), "bfloat16")
    policies = {layer.name: layer.dtype_policy.name for layer in half.layers}
    assert policies["conv"] == policies["mean"] == "mixed_bfloat16"
    assert {policies[name] for name in ("unit", "head", "dropped", "answers")} == {"float32"}
    assert precision.mixed_classifier(model, "float32") is model


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of each fine-tuning, in order."""
    precisions, fine_tune = list[str](), remote_tasks.fine_tune
    monkeypatch.setattr(remote_tasks, "fine_tune", lambda *args: precisions.append(args[-1]) or fine_tune(*args))
    return precisions


def test_a_run_fine_tunes_in_the_precision_of_its_settings(
    eager: None, used: list[str], data: pbd.Data, tmp_path: Path
) -> None:
    settings = {"block": "decoupled_r1", "include_unprofitable": True, "accuracy_threshold": 0.0}
    pbd.distill(network("float32"), data, **CHEAP, **settings, precision="bfloat16", run_dir=str(tmp_path / "run"))
    assert used == ["bfloat16"]


@pytest.mark.parametrize(("setting", "expected"), [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_a_step_fine_tunes_in_the_precision_of_the_settings(
    setting: str, expected: str, eager: None, used: list[str], data: pbd.Data, tmp_path: Path
) -> None:
    in_process = {"executor": "serial", "isolate": False, "run_dir": str(tmp_path / "recipe")}
    config = pbd.RunConfig.of(precision=setting)
    pbd.compress(network("float32"), data, [pbd.FineTune(epochs=1)], config=config, **in_process)
    assert used == [expected]


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_the_student_has_the_precision_of_its_teacher(policy: str, eager: None, data: pbd.Data, tmp_path: Path) -> None:
    path = tmp_path / "teacher.keras"
    network(policy).save(path)
    result = pbd.distill(teacher=str(path), data=data, **CHEAP, max_accuracy_drop=1.0, run_dir=str(tmp_path / "run"))
    assert [row.status for row in result.report.blocks] == ["skipped", "accepted"]
    student = result.model
    replaced = [layer for layer in student.layers if layer.name.startswith("b_pbd")]
    assert {layer.dtype_policy.name for layer in replaced} == {policy}
    assert student.get_layer("b_head").dtype_policy.name == "float32", "a layer of the teacher, not of b's block"
    folded = keras.models.load_model(tmp_path / "run" / "student_folded.keras")
    images = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    outputs = student.predict(images, verbose=0)
    np.testing.assert_allclose(folded.predict(images, verbose=0), outputs, atol=0.1 * np.abs(outputs).max())


@pytest.fixture
def other_defaults() -> Iterator[None]:
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)


def test_networks_are_changed_and_joined_in_float32_whatever_the_global_policy(other_defaults: None) -> None:
    keras.config.set_image_data_format("channels_last")
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(4, 3, groups=2, activation="relu", dtype="float32", name="grouped")(inputs)
    x = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32", name="head")(x))
    images = np.zeros((4, 8, 8, 4), "float32")
    joined = [ensemble.joined([model, model], mean, images) for mean in (ensemble.PROBABILITIES, ensemble.LOGITS)]
    for network in (*joined, portable.portable(model), refitting._as_convolutions(model, {})):
        layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
        assert {layer.dtype_policy.name for layer in layers} == {"float32"}, [layer.name for layer in layers]


@pytest.fixture
def expected(data: pbd.Data, tmp_path: Path) -> list[np.ndarray]:
    """The weights of the student under Keras' own defaults."""
    return student_weights(data, tmp_path / "expected")


def student_weights(data: pbd.Data, run_dir: Path) -> list[np.ndarray]:
    settings = {**CHEAP, "block": "two_layer_skip", "include_unprofitable": True, "max_accuracy_drop": 1.0}
    return pbd.distill(network("float32"), data, **settings, run_dir=str(run_dir)).model.get_weights()


def test_global_defaults_of_keras_do_not_change_the_student(
    eager: None, expected: list[np.ndarray], other_defaults: None, data: pbd.Data, tmp_path: Path
) -> None:
    for one, other in zip(expected, student_weights(data, tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(one, other)
