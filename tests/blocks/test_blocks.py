"""The designs: shapes, the last activation, what they cost, where their first weights come from."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import decoupling, initialisation
from pbd.blocks.decoupled import Decoupled, set_factors
from pbd.blockwise.tasks import describe_layer, enumerate_tasks
from pbd.config import BlockConfig
from pbd.errors import UsageError
from pbd.records import CONVOLUTION, BlockTask, Layer
from tests.helpers.fakes import make_task
from tests.helpers.swapping import swap_blocks


def first_and_last(names: Iterable[str]) -> list[str]:
    """Return the first and the last design of each class: those between have other numbers."""
    of_class: dict[type, list[str]] = {}
    for name in names:
        of_class.setdefault(type(blocks.get(name)), []).append(name)
    return [name for same in of_class.values() for name in dict.fromkeys((same[0], same[-1]))]


DESIGNS = sorted(design.name for design in blocks.designs() if design.replaces == CONVOLUTION)
FIRST_AND_LAST = [*first_and_last(DESIGNS), "two_layer", "three_layer_skip"]
RANKS = {"decoupled_r1": 1, "decoupled_r2": 2, "decoupled_r3": 3}
DEPTHS = {"two_layer": 2, "two_layer_skip": 2, "three_layer": 3, "three_layer_skip": 3}
GEOMETRIES: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "strides": 2},
    {"padding": "valid", "strides": 3},
    {"padding": "same", "dilation_rate": 2},
    {"padding": "valid", "dilation_rate": 3},
    {"padding": "same", "kernel_size": (1, 7)},
    {"padding": "valid", "kernel_size": (7, 1), "strides": 2},
    {"padding": "same", "kernel_size": 4},
]


def convolution(channels: int = 6, **settings: Any) -> tuple[keras.layers.Conv2D, Layer]:
    """Return a convolution with a bias that counts, and its record."""
    inputs = keras.Input((11, 11, channels))
    arguments = {"filters": 10, "kernel_size": 3, "name": "layer", "bias_initializer": "normal"} | settings
    layer = keras.layers.Conv2D(**arguments)
    return layer, describe_layer(0, layer, keras.Model(inputs, layer(inputs)))


def record(**settings: Any) -> Layer:
    """Return the record of a convolution, made once for all tests with these settings."""
    return _record(tuple(settings.items()))


@functools.cache
def _record(settings: tuple[tuple[str, Any], ...]) -> Layer:
    return convolution(**dict(settings))[1]


def output_of(block: keras.Model | keras.Layer, layer: Layer) -> np.ndarray:
    images = np.random.default_rng(0).normal(size=(4, *layer.input_shape)).astype("float32")
    return keras.ops.convert_to_numpy(block(images, training=False))


def test_a_name_that_would_hide_the_layer_in_the_names_of_blocks_is_refused() -> None:
    named = copy.copy(blocks.get("decoupled_r2"))
    object.__setattr__(named, "name", "mine@home")
    with pytest.raises(ValueError, match="must not contain @"):
        blocks.register(named)
    with pytest.raises(ValueError, match="must not contain @"):
        blocks.register_family("mine@r", Decoupled, range(1, 3))


def test_the_default_design_is_registered_and_an_unknown_one_is_refused_with_the_nearest_name() -> None:
    assert set(BlockConfig().block) <= set(DESIGNS)
    with pytest.raises(UsageError, match="decoupled_r2"):
        blocks.get("decoupeld_r2")


@pytest.mark.parametrize("design", FIRST_AND_LAST)
@pytest.mark.parametrize("settings", GEOMETRIES, ids=str)
def test_a_block_has_the_shape_of_its_layer(design: str, settings: dict[str, Any]) -> None:
    layer = record(channels=8, filters=16, **settings)
    block = blocks.build_block(blocks.get(design), layer, seed=0)
    assert block.input_shape == (None, *layer.input_shape)
    assert block.output_shape == (None, *layer.output_shape)
    assert output_of(block, layer).shape == (4, *layer.output_shape)


@functools.cache
def output_before_activation(design: str) -> np.ndarray:
    layer = record(channels=8, filters=16)
    return output_of(blocks.build_block(blocks.get(design), layer, seed=0), layer)


@pytest.mark.parametrize("design", FIRST_AND_LAST)
@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_a_block_ends_with_the_activation_of_its_layer(design: str, activation: str) -> None:
    layer = record(channels=8, filters=16, activation=activation)
    output = output_of(blocks.build_block(blocks.get(design), layer, seed=0), layer)
    before = output_before_activation(design)
    assert before.min() < 0, "nothing cuts off a linear layer"
    expected = keras.ops.convert_to_numpy(keras.activations.get(activation)(before))
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("design", [*RANKS, *DEPTHS])
def test_a_block_costs_what_its_task_says(design: str, use_bias: bool) -> None:
    inputs = keras.Input((11, 11, 6))
    layer = keras.layers.Conv2D(10, 3, strides=2, use_bias=use_bias, name="layer")(inputs)
    (described,) = enumerate_tasks(keras.Model(inputs, layer), blocks.get(design), include_unprofitable=True)
    if design in RANKS:
        kernels, others = RANKS[design] * (9 * 6 + 6 * 10), 10 * use_bias
    else:
        kernels = 9 * 6 + 6 * 10 + (DEPTHS[design] - 1) * (9 * 10 + 10 * 10)
        others = DEPTHS[design] * 4 * 10  # the normalisations; a bias before them would do nothing
    assert described.params == kernels + others
    assert described.params == blocks.build_block(blocks.get(design), described.layer, seed=0).count_params()
    assert described.macs == 5 * 5 * kernels


def full_rank_block(layer: Layer) -> keras.Model:
    inputs = keras.Input(layer.input_shape)
    return keras.Model(inputs, Decoupled(99).build(inputs, layer, seed=0))


def give_factors(block: keras.Model, described: Layer, layer: keras.layers.Conv2D, rank: int) -> None:
    bias = np.asarray(layer.bias) if layer.use_bias else np.full(described.output_shape[-1], np.nan)
    set_factors(block, described, decoupling.decouple(initialisation.dense_kernel(layer), rank), bias)


@pytest.mark.parametrize(
    "settings",
    [
        *GEOMETRIES,
        {"padding": "valid", "use_bias": False},
        {"padding": "same", "strides": 2, "activation": "relu"},
        {"padding": "same", "activation": "tanh", "use_bias": False},
        {"padding": "same", "groups": 2},
        {"padding": "valid", "groups": 2, "strides": 2, "use_bias": False, "kernel_size": (3, 2)},
        {"padding": "same", "filters": 4},
        {"padding": "same", "dilation_rate": (1, 3)},
    ],
    ids=str,
)
def test_a_decoupled_block_of_full_rank_computes_what_the_layer_does(settings: dict[str, Any]) -> None:
    layer, described = convolution(**settings)
    block = full_rank_block(described)
    give_factors(block, described, layer, rank=99)
    np.testing.assert_allclose(output_of(block, described), output_of(layer, described), atol=2e-5)


@pytest.mark.parametrize("design", sorted(RANKS))
@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": "valid", "strides": 2, "use_bias": False}])
def test_a_kernel_of_its_rank_is_held_exactly(design: str, settings: dict[str, Any]) -> None:
    layer, described = convolution(**settings, activation="relu")
    generator, rank = np.random.default_rng(3), RANKS[design]
    for kernel_rank, exact in ((rank, True), (rank + 1, False)):
        kernel = generator.normal(size=(6, 9, kernel_rank)) @ generator.normal(size=(6, kernel_rank, 10))
        layer.kernel.assign(kernel.transpose(1, 0, 2).reshape(3, 3, 6, 10))
        block = blocks.build_block(blocks.get(design), described, seed=0)
        give_factors(block, described, layer, rank)
        expected = output_of(layer, described)
        assert np.allclose(output_of(block, described), expected, atol=1e-5 * np.abs(expected).max()) == exact


@pytest.mark.parametrize("design", sorted(RANKS))
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_decoupled_block_has_a_bias_exactly_if_its_layer_has(design: str, use_bias: bool) -> None:
    built = blocks.build_block(blocks.get(design), record(use_bias=use_bias), seed=0)
    biased = {layer.name for layer in built.layers if getattr(layer, "use_bias", False)}
    assert biased == ({"layer_pbd_pointwise"} if use_bias else set())


@pytest.mark.parametrize(
    ("design", "settings", "filters"),
    [
        ("decoupled_r1", {}, 1),
        ("decoupled_r2", {}, 2),
        ("decoupled_r3", {}, 3),
        ("decoupled_r3", {"kernel_size": (1, 2)}, 2),
        ("decoupled_r3", {"filters": 2}, 2),
        ("decoupled_r2", {"filters": 1}, 1),
    ],
)
def test_filters_stand_side_by_side_and_no_more_than_can_help(
    design: str, settings: dict[str, Any], filters: int
) -> None:
    """A depth multiplier has no fast kernel in any runtime."""
    layer, described = convolution(**settings)
    block = blocks.build_block(blocks.get(design), described, seed=0)
    depthwise = [layer for layer in block.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    assert len(depthwise) == filters
    assert all(layer.depth_multiplier == 1 for layer in depthwise)
    assert block.get_layer("layer_pbd_pointwise").kernel.shape == (1, 1, 6 * filters, described.output_shape[-1])
    first = [keras.ops.convert_to_numpy(layer.kernel) for layer in depthwise]
    assert not any(np.allclose(one, first[0]) for one in first[1:]), "equal filters would stay equal"
    give_factors(block, described, layer, filters)
    whole = filters < RANKS[design]
    assert np.allclose(output_of(block, described), output_of(layer, described), atol=1e-5) == whole


def test_a_skip_adds_the_first_layers_output() -> None:
    layer = record()
    plain, skip = (blocks.build_block(blocks.get(design), layer, seed=0) for design in ("two_layer", "two_layer_skip"))
    first = keras.Model(plain.inputs[0], plain.get_layer("layer_pbd_relu1").output)
    np.testing.assert_allclose(output_of(skip, layer), output_of(plain, layer) + output_of(first, layer), atol=1e-5)


def weights_of(task: BlockTask, seed: int, design: str = "two_layer") -> dict[str, np.ndarray]:
    return blocks.get_weights(blocks.build_block(blocks.get(design), task.layer, seed))


@pytest.mark.parametrize("design", ["two_layer", "decoupled_r2"])
def test_first_weights_depend_on_seed_and_layer_and_on_nothing_else(design: str) -> None:
    one, two = make_task(0, layer_name="one"), make_task(1, layer_name="two")
    first = [weights_of(task, 5, design) for task in (one, two)]
    keras.utils.set_random_seed(99)
    keras.random.normal((3,))
    second = [
        weights_of(task, 5, design) for task in (two, replace(one, layer=replace(one.layer, index=7, prefix_macs=1)))
    ][::-1]
    for before, after in zip(first, second, strict=True):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)

    other, seeded = first[1], weights_of(one, 6, design)
    kernels = [key for key in first[0] if key.endswith("kernel")]
    assert len(kernels) == (4 if design == "two_layer" else 3)
    for key in kernels:
        assert not np.allclose(first[0][key], other[key.replace("one_", "two_", 1)])
        assert not np.allclose(first[0][key], seeded[key])


def test_the_layers_of_a_stack_begin_differently() -> None:
    held = weights_of(make_task(0, layer_name="one"), seed=5)
    one, two = (held[f"one_pbd_sep{number}/depthwise_kernel"] for number in (1, 2))
    assert not np.allclose(one, two)


@pytest.mark.parametrize("design", ["two_layer", "decoupled_r2"])
def test_a_block_in_the_graph_begins_as_it_does_alone(design: str) -> None:
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    (task,) = enumerate_tasks(model, blocks.get(design))
    student = swap_blocks(model, [task], seed=5)
    for key, value in weights_of(task, 5, design).items():
        layer, variable = key.split("/")
        held = {v.name: v for v in student.get_layer(layer).weights}[variable]
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(held), value)


def test_seeds_are_31_bits_and_tell_names_apart() -> None:
    seeds = {blocks.derive_seed(0, "ab", "c"), blocks.derive_seed(0, "a", "bc"), blocks.derive_seed(1, "ab", "c")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert blocks.derive_seed(-1, "a") == blocks.derive_seed(-1, "a")


@pytest.mark.parametrize("design", FIRST_AND_LAST)
def test_weights_go_round_through_a_student(design: str) -> None:
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="a")(inputs)
    x = keras.layers.Conv2D(16, 3, name="b")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    tasks = enumerate_tasks(model, blocks.get(design), include_unprofitable=True)
    student = swap_blocks(model, tasks)
    generator = np.random.default_rng(0)
    for task in tasks:
        block = blocks.build_block(blocks.get(design), task.layer, seed=1)
        weights = {
            key: generator.normal(size=value.shape).astype(value.dtype)
            for key, value in blocks.get_weights(block).items()
        }
        blocks.set_weights(student, weights)
        blocks.set_weights(block, weights)
        held = blocks.get_weights(student)
        for key, value in blocks.get_weights(block).items():
            np.testing.assert_array_equal(held[key], value)
            np.testing.assert_allclose(value, weights[key], rtol=1e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    block = blocks.build_block(blocks.get("two_layer"), make_task(0).layer, seed=0)
    name, value = next(iter(blocks.get_weights(block).items()))
    for wrong in ({"nowhere/kernel": value}, {f"{name}s": value}, {name: value[..., :-1, :]}):
        with pytest.raises(ValueError, match=r".+"):
            blocks.set_weights(block, wrong)
