"""The four designs: shapes, the last activation, what they cost, where their first weights come from."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks, config, graph
from pbd.records import LayerTask
from tests.fakes import make_task

DESIGNS = sorted(blocks.BLOCKS)


def convolution_task(**settings: Any) -> LayerTask:
    """Return the task of one convolution of a small network."""
    inputs = keras.Input((11, 11, 6))
    x = keras.layers.Conv2D(**{"filters": 10, "kernel_size": 3, "name": "layer"} | settings)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    block = settings.pop("block", "two_layer")
    return graph.enumerate_tasks(model, block, include_unprofitable=True)[0]


def output_of(block: keras.Model, task: LayerTask) -> np.ndarray:
    images = np.random.default_rng(0).normal(size=(4, *task.input_shape)).astype("float32")
    return keras.ops.convert_to_numpy(block(images, training=False))


def test_the_settings_offer_every_design() -> None:
    assert sorted(config.BLOCKS) == DESIGNS


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "strides": 2},
        {"padding": "valid", "strides": 3},
        {"padding": "same", "dilation_rate": 2},
        {"padding": "valid", "dilation_rate": 3},
        {"padding": "same", "kernel_size": (1, 7)},
        {"padding": "valid", "kernel_size": (7, 1), "strides": 2},
        {"padding": "same", "kernel_size": 4},
    ],
    ids=str,
)
def test_a_block_has_the_shape_of_its_layer(design: str, settings: dict[str, Any]) -> None:
    task = convolution_task(**settings)
    block = blocks.build_block(design, task, seed=0)
    assert block.input_shape == (None, *task.input_shape)
    assert block.output_shape == (None, *task.output_shape)
    assert output_of(block, task).shape == (4, *task.output_shape)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "leaky_relu", "silu"])
def test_a_block_ends_with_the_activation_of_its_layer(design: str, activation: str) -> None:
    task = convolution_task(activation=activation)
    block = blocks.build_block(design, task, seed=0)
    linear = blocks.build_block(design, replace(task, activation="linear"), seed=0)
    output, before = output_of(block, task), output_of(linear, task)
    assert before.min() < 0, "nothing cuts off a linear layer"
    expected = keras.ops.convert_to_numpy(keras.activations.get(activation)(before))
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("design", "depth"), list(zip(DESIGNS, (3, 3, 2, 2), strict=True)))
def test_a_block_costs_what_its_task_says(design: str, depth: int) -> None:
    task = convolution_task(strides=2)
    inputs = keras.Input(task.input_shape)
    layer = keras.layers.Conv2D(10, 3, strides=2, name="layer")(inputs)
    (described,) = graph.enumerate_tasks(keras.Model(inputs, layer), design, include_unprofitable=True)
    normalisation = 4 * 10
    separable = [9 * 6 + 6 * 10] + [9 * 10 + 10 * 10] * (depth - 1)
    assert described.block_params == sum(separable) + depth * normalisation
    assert described.block_params == blocks.build_block(design, task, seed=0).count_params()
    assert described.block_macs == 5 * 5 * sum(separable)


def test_a_skip_adds_the_first_layers_output() -> None:
    task = convolution_task()
    plain, skip = (blocks.build_block(design, task, seed=0) for design in ("two_layer", "two_layer_skip"))
    first = keras.Model(plain.inputs, plain.get_layer("layer_pbd_relu1").output)
    np.testing.assert_allclose(output_of(skip, task), output_of(plain, task) + output_of(first, task), atol=1e-5)


def weights_of(task: LayerTask, seed: int) -> dict[str, np.ndarray]:
    return blocks.get_weights(blocks.build_block("two_layer", task, seed))


def test_first_weights_depend_on_seed_and_layer_and_on_nothing_else() -> None:
    one, two = make_task(0, layer_name="one"), make_task(1, layer_name="two")
    first = [weights_of(task, seed=5) for task in (one, two)]
    keras.utils.set_random_seed(99)
    keras.random.normal((3,))
    second = [weights_of(task, seed=5) for task in (two, replace(one, index=7, prefix_macs=1))][::-1]
    for before, after in zip(first, second, strict=True):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)

    kernel = "pbd_sep1/depthwise_kernel"
    assert not np.allclose(first[0][f"one_{kernel}"], first[1][f"two_{kernel}"])
    assert not np.allclose(first[0][f"one_{kernel}"], weights_of(one, seed=6)[f"one_{kernel}"])
    assert not np.allclose(first[0][f"one_{kernel}"][..., 0], first[0]["one_pbd_sep2/depthwise_kernel"][..., 0])


def test_a_block_in_the_graph_begins_as_it_does_alone() -> None:
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    (task,) = graph.enumerate_tasks(model, "two_layer")
    student = graph.swap(model, [task], "two_layer", seed=5)
    for key, value in weights_of(task, seed=5).items():
        layer, variable = key.split("/")
        held = {v.name: v for v in student.get_layer(layer).weights}[variable]
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(held), value)


def test_seeds_are_31_bits_and_tell_names_apart() -> None:
    seeds = {blocks.derive_seed(0, "ab", "c"), blocks.derive_seed(0, "a", "bc"), blocks.derive_seed(1, "ab", "c")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert blocks.derive_seed(-1, "a") == blocks.derive_seed(-1, "a")


@pytest.mark.parametrize("design", DESIGNS)
def test_weights_go_round_through_a_student(design: str) -> None:
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="a")(inputs)
    x = keras.layers.Conv2D(16, 3, name="b")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    tasks = graph.enumerate_tasks(model, design, include_unprofitable=True)
    student = graph.swap(model, tasks, design)
    generator = np.random.default_rng(0)
    for task in tasks:
        block = blocks.build_block(design, task, seed=1)
        given = {key: generator.normal(size=value.shape) for key, value in blocks.get_weights(block).items()}
        blocks.set_weights(student, given)
        blocks.set_weights(block, given)
        held = blocks.get_weights(student)
        for key, value in blocks.get_weights(block).items():
            np.testing.assert_array_equal(held[key], value)
            np.testing.assert_allclose(value, given[key], rtol=1e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    block = blocks.build_block("two_layer", make_task(0), seed=0)
    name, value = next(iter(blocks.get_weights(block).items()))
    for wrong in ({"nowhere/kernel": value}, {f"{name}s": value}, {name: value[..., :-1, :]}):
        with pytest.raises(ValueError, match=r".+"):
            blocks.set_weights(block, wrong)


def test_the_settings_offer_exactly_the_designs_there_are() -> None:
    assert sorted(config.BLOCKS) == sorted(blocks.BLOCKS)
