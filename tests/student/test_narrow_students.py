"""A student with blocks that read some channels: the other channels are gone, and it is a plain Keras model."""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import initialisation
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import channels, graph, precision
from pbd.records import BlockResult, BlockTask
from pbd.student.assemble import assemble
from tests.helpers.narrowing import difference, predict, randomise

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def teacher(takes: bool = False) -> keras.Model:
    """Return a network of two convolutions; `b` is the only reader of `a`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGES.shape[1:])
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="normalised")(x))
    x = layers.Conv2D(10, 3, padding="same", name="b", activation="relu")(x)
    x = keras.ops.take(x, [8, 1, 2, 4], axis=-1) if takes else x
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    return model


def fitted(model: keras.Model, name: str = "narrow_r50") -> tuple[BlockTask, keras.Model]:
    """Return the task of layer `b` and its block, fitted to images."""
    design = blocks.get(name)
    task = next(t for t in enumerate_tasks(model, design, include_unprofitable=True) if t.layer.name == "b")
    block = blocks.build_block(design, task.layer, seed=0)
    prefix = graph.truncate(model, ["b"])
    initialisation.initialise({task.key: block}, [task], {name: design}, model, prefix, [IMAGES], "fitted", seed=0)
    return task, block


def assembled(model: keras.Model, task: BlockTask, block: keras.Model) -> keras.Model:
    result = BlockResult("b", "trained", task.design, weights=blocks.get_weights(block))
    return assemble(model, [task], {"b": result})


def expected(model: keras.Model, task: BlockTask, block: keras.Model) -> np.ndarray:
    """Return the outputs of the teacher with the block itself in the place of its layer."""
    build = functools.partial(blocks.get(task.design).build, layer=task.layer, seed=0)
    swapped = graph.swap(model, {"b": build})
    blocks.set_weights(swapped, blocks.get_weights(block))
    return predict(swapped, IMAGES)


def takes(model: keras.Model) -> list[str]:
    return [operation.name for operation in model.operations if type(operation).__name__ == "Take"]


def test_the_filters_that_no_layer_reads_are_removed() -> None:
    model = teacher()
    task, block = fitted(model)
    student = assembled(model, task, block)
    assert task.layer.producer == "a"
    assert student.get_layer("a").filters == student.get_layer("normalised").gamma.shape[0] == 6
    assert not takes(student)
    assert difference(predict(student, IMAGES), expected(model, task, block)) < 1e-5


def test_names_of_operations_of_the_teacher_do_not_collide() -> None:
    keras.utils.clear_session(free_memory=False)
    model = teacher(takes=True)
    assert takes(model) == ["take"]
    task, block = fitted(model)
    student = assembled(model, task, block)
    assert takes(student) == ["take"]
    assert difference(predict(student, IMAGES), expected(model, task, block)) < 1e-5


def test_a_selection_from_channels_that_all_stay_is_an_operation_of_keras(tmp_path: Path) -> None:
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 8))
    x = keras.ops.take(inputs, [4, 3, 2, 1, 5], axis=-1)
    x = layers.Conv2D(6, 3, name="b")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    design = blocks.get("narrow_r50")
    (task,) = enumerate_tasks(model, design, include_unprofitable=True)
    assert (task.layer.producer, task.skip_reason) == ("", None)
    (skipped, *_) = enumerate_tasks(teacher(), design, blocks.get("two_layer"), include_unprofitable=False)
    assert "input channels: 3" in str(skipped.skip_reason)
    block = blocks.build_block(design, task.layer, seed=0)
    block.get_layer("b_pbd_select").set_weights([np.array([3, 0])])
    student = assembled(model, task, block)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", compile=False)
    assert "b_pbd_select" in takes(loaded)
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 8)).astype("float32")
    features = keras.Model(loaded.inputs[0], loaded.get_layer("b_pbd_narrowed").output)
    assert difference(predict(features, images), predict(block, images[..., [4, 3, 2, 1, 5]])) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_indices_are_exact_in_half_precision(dtype: str) -> None:
    """bfloat16 has 8 digits, so it does not hold 301."""
    inputs: Any = keras.Input((2, 2, 400))
    model = keras.Model(inputs, blocks.selection.SelectChannels(2, name="select")(inputs))
    model.get_layer("select").set_weights([np.array([301, 7])])
    half = precision.mixed(model, dtype)
    images = np.broadcast_to(np.arange(400, dtype="float32") % 100, (1, 2, 2, 400))
    assert np.asarray(predict(half, images), "float32")[0, 0, 0].tolist() == [1.0, 7.0]


def test_training_keeps_the_selection() -> None:
    task, block = fitted(teacher())
    before = block.get_layer("b_pbd_select").get_weights()[0]
    block.compile("sgd", "mse")
    inputs = np.random.default_rng(2).normal(size=(4, *task.layer.input_shape))
    block.fit(inputs, np.ones((4, *task.layer.output_shape)), epochs=2, verbose=0)
    np.testing.assert_array_equal(block.get_layer("b_pbd_select").get_weights()[0], before)


def test_the_size_of_a_block_can_be_computed_for_fewer_outputs() -> None:
    task, block = fitted(teacher())
    plain = channels.restricted(graph.swap(block, blocks.constant_selections(block)), outputs=3)
    assert plain.input_shape == (None, 8, 8, 6)
    assert plain.output_shape == (None, 8, 8, 3)
    assert not takes(plain)
    assert task.macs == 8 * 8 * 9 * 6 * 10
