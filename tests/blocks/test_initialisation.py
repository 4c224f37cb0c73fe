"""First weights from the teacher: what a layer sees, its moments, and how near a block begins to the layer."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import initialisation
from pbd.blocks.initialisation import Statistics, dense_kernel
from pbd.blocks.patches import all_patches
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import graph
from pbd.records import BlockTask

GEOMETRIES: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "strides": 2},
    {"padding": "same", "strides": 3, "kernel_size": 2},
    {"padding": "valid", "strides": 3},
    {"padding": "same", "dilation_rate": 2},
    {"padding": "same", "dilation_rate": (1, 3), "kernel_size": (4, 3)},
    {"padding": "valid", "dilation_rate": 2, "kernel_size": (2, 3)},
    {"padding": "same", "kernel_size": 4},
    {"padding": "same", "kernel_size": 4, "strides": 2},
    {"padding": "same", "kernel_size": (1, 7)},
    {"padding": "valid", "kernel_size": (7, 1), "strides": 2},
    {"padding": "same", "groups": 2},
    {"padding": "valid", "groups": 4, "kernel_size": 2},
]
PAPER = ["two_layer", "three_layer", "two_layer_skip", "three_layer_skip"]


@functools.cache
def prefix_of(teacher: keras.Model, *names: str) -> keras.Model:
    """Return the model of the inputs and outputs of these layers; it is traced once for all tests of a teacher."""
    return graph.truncate(teacher, names)


@dataclass(frozen=True)
class Subject:
    """A teacher of one or two convolutions, and batches of what feeds it."""

    teacher: keras.Model
    images: np.ndarray
    unseen: np.ndarray

    def batches(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.images, 4))

    def task(self, block: str, name: str = "layer") -> BlockTask:
        tasks = enumerate_tasks(self.teacher, blocks.get(block), include_unprofitable=True)
        return next(task for task in tasks if task.layer.name == name)

    def begin(
        self, block: str, block_init: str, names: Sequence[str] = ("layer",), seed: int = 0
    ) -> dict[str, keras.Model]:
        """Return blocks with their first weights."""
        tasks = [self.task(block, name) for name in names]
        built = {task.key: blocks.build_block(blocks.get(block), task.layer, seed) for task in tasks}
        prefix = prefix_of(self.teacher, *names)
        designs = {block: blocks.get(block)}
        initialisation.initialise(built, tasks, designs, self.teacher, prefix, self.batches(), block_init, seed)
        return {key.layer: block for key, block in built.items()}

    def outputs(self, block: keras.Model, images: np.ndarray, name: str = "layer") -> tuple[np.ndarray, np.ndarray]:
        """Return what the block makes of these images, and what the layer does."""
        fed, target = prefix_of(self.teacher, name)(images, training=False)[name]
        return keras.ops.convert_to_numpy(block(fed, training=False)), np.asarray(target)

    def nmse(self, block: keras.Model, name: str = "layer") -> float:
        output, target = self.outputs(block, self.unseen, name)
        return float(np.mean((output - target) ** 2) / np.var(target))


def smooth_images(count: int, side: int, channels: int, seed: int) -> np.ndarray:
    """Return non-negative images whose neighbours and channels are correlated, as those behind a ReLU are."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(channels, channels)) / np.sqrt(channels)
    noise = generator.normal(size=(count, side + 2, side + 2, channels))
    near = sum(noise[:, i : i + side, j : j + side] for i in range(3) for j in range(3)) / 3
    return np.maximum(near @ mixing + 0.5, 0).astype("float32")


@functools.cache
def subject(side: int = 9, channels: int = 10, falling: float = 0.5, second: bool = False, **settings: Any) -> Subject:
    """Return a teacher whose kernel's singular values fall from one to the next by this factor; tests share it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((side, side, channels))
    arguments = {"filters": 12, "kernel_size": 3, "padding": "same", "name": "layer", "bias_initializer": "normal"}
    layer = keras.layers.Conv2D(**arguments | settings)
    x = layer(inputs)
    if second:
        x = keras.layers.Conv2D(14, 3, activation="relu", bias_initializer="normal", name="later")(x)
    teacher = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    left, values, right = np.linalg.svd(dense_kernel(layer), full_matrices=False)
    kernel = (left * falling ** np.arange(values.shape[1])) @ right
    if layer.groups == 1:
        layer.kernel.assign(kernel.transpose(1, 0, 2).reshape(layer.kernel.shape))
    return Subject(teacher, smooth_images(256, side, channels, seed=2), smooth_images(64, side, channels, seed=3))


@pytest.mark.parametrize("side", [11, 12], ids=lambda side: f"side {side}")
@pytest.mark.parametrize("settings", GEOMETRIES, ids=str)
def test_patches_times_the_dense_kernel_are_the_convolution(settings: dict[str, Any], side: int) -> None:
    inputs = keras.Input((side, side + 3, 4))
    layer = keras.layers.Conv2D(**{"filters": 8, "kernel_size": 3, "use_bias": False, "name": "layer"} | settings)
    model = keras.Model(inputs, layer(inputs))
    task = enumerate_tasks(model, blocks.get("two_layer"), include_unprofitable=True)[0]
    images = np.random.default_rng(0).normal(size=(2, side, side + 3, 4)).astype("float32")
    patches = all_patches(images, task.layer)
    assert patches.shape == (2, *task.layer.output_shape[:2], 4, *task.layer.kernel_size)
    output = patches.reshape(*patches.shape[:3], -1) @ dense_kernel(layer).reshape(-1, 8)
    np.testing.assert_allclose(output, keras.ops.convert_to_numpy(layer(images)), atol=1e-5)


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": "valid", "strides": 2}], ids=str)
def test_sampled_moments_are_those_of_all_patches_borders_included(settings: dict[str, Any]) -> None:
    """A bright frame and a dark corner: a sample that misses or prefers the borders would tell."""
    held = subject(side=17, channels=2, **settings)
    image = np.random.default_rng(0).normal(size=(1, 17, 17, 2)).astype("float32")
    image[:, [0, -1]] += 5.0
    image[:, :, [0, -1]] += 5.0
    image[:, -4:, -4:, 0] -= 8.0
    task = held.task("two_layer")
    patches = all_patches(image, task.layer).reshape(-1, 18)
    seen = Statistics.empty(task.layer, seed=0)
    for _ in range(2000):
        seen.add_inputs(image)
    assert seen.patches < 2000 * len(patches) / 3, "a sample, not all"
    moment, mean = patches.T @ patches / len(patches), patches.mean(axis=0)
    assert np.abs(seen.moment - moment).max() < 0.06 * np.abs(moment).max()
    assert np.abs(seen.mean - mean).max() < 0.06 * np.abs(mean).max()


def test_small_images_are_looked_at_everywhere() -> None:
    held = subject(side=4)
    seen = Statistics.empty(held.task("two_layer").layer, seed=0)
    outputs = held.outputs(held.teacher.get_layer("layer"), held.images)[1]
    for inputs, targets in zip(np.split(held.images, 4), np.split(outputs, 4), strict=True):
        seen.add_inputs(inputs)
        seen.add_targets(targets)
    patches = all_patches(held.images, seen.layer).reshape(-1, 90).astype("float64")
    np.testing.assert_allclose(seen.moment, patches.T @ patches / len(patches), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.mean, patches.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(seen.target_mean, outputs.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.target_deviation, outputs.std(axis=(0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_bias": False},
        {"activation": "relu"},
        {"strides": 2, "padding": "valid"},
        {"dilation_rate": 2},
        {"groups": 2},
        {"kernel_size": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("block", ["decoupled_r1", "decoupled_r2"])
def test_fitted_begins_nearer_than_the_kernel_and_that_nearer_than_noise(block: str, settings: dict[str, Any]) -> None:
    held = subject(**settings)
    noise, kernel, fitted = (
        held.nmse(held.begin(block, block_init)["layer"]) for block_init in ("noise", "kernel", "fitted")
    )
    assert kernel < 0.6 * noise
    assert fitted < 0.9 * kernel


def test_a_kernel_of_low_rank_is_reproduced() -> None:
    held = subject(falling=1e-6)
    for block_init in ("kernel", "fitted"):
        assert held.nmse(held.begin("decoupled_r1", block_init)["layer"]) < 1e-6


def test_the_bias_makes_up_for_the_mean_of_what_is_missed() -> None:
    held = subject(side=4)
    fitted = held.begin("decoupled_r1", "fitted")["layer"]
    output, target = held.outputs(fitted, held.images)
    np.testing.assert_allclose(output.mean(axis=(0, 1, 2)), target.mean(axis=(0, 1, 2)), atol=1e-4)
    output, _ = held.outputs(held.begin("decoupled_r1", "kernel")["layer"], held.images)
    assert np.abs(output.mean(axis=(0, 1, 2)) - target.mean(axis=(0, 1, 2))).max() > 0.05


def see(block: keras.Model, held: Subject) -> None:
    """Let the block's normalisations, one behind the other, take the statistics of the images."""
    normalisations = [layer for layer in block.layers if isinstance(layer, keras.layers.BatchNormalization)]
    fed = prefix_of(held.teacher, "layer")(held.images, training=False)["layer"][0]
    for layer in normalisations:
        layer.momentum = 0.0
    for _ in normalisations:
        block(fed, training=True)


@pytest.fixture(scope="module", params=["linear", "relu"])
def nearly_of_rank_one(request: pytest.FixtureRequest) -> tuple[Subject, dict[str, float]]:
    """A teacher, and the errors of its layer's block of one filter per channel, by how the block begins."""
    held = subject(activation=request.param, falling=0.2)
    return held, {init: held.nmse(held.begin("decoupled_r1", init)["layer"]) for init in ("kernel", "fitted")}


@pytest.mark.parametrize("block", PAPER)
def test_a_design_of_the_paper_begins_near_the_first_singular_vectors(
    block: str, nearly_of_rank_one: tuple[Subject, dict[str, float]]
) -> None:
    """Once its normalisations have seen some images."""
    held, rank_one = nearly_of_rank_one
    errors = {}
    for block_init in ("noise", *rank_one):
        initialised = held.begin(block, block_init)["layer"]
        see(initialised, held)
        errors[block_init] = held.nmse(initialised)
    for block_init, least in rank_one.items():
        assert least < 0.1
        assert errors[block_init] < least + 0.1
        assert errors[block_init] < 0.2 * errors["noise"]


@pytest.mark.parametrize("block", ["decoupled_r2", "two_layer", "spatial_svd_r33", "tucker2_r50"])
def test_first_weights_depend_on_seed_and_layer_and_on_nothing_else(block: str) -> None:
    held = subject(side=15, second=True)
    together = held.begin(block, "fitted", names=("layer", "later"))
    keras.utils.set_random_seed(99)
    alone = {
        name: held.begin(block, "fitted", names=names)[name]
        for name, names in (("later", ("later",)), ("layer", ("later", "layer")))
    }
    for name in together:
        one, other = (blocks.get_weights(built[name]) for built in (together, alone))
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    seeded = blocks.get_weights(held.begin(block, "fitted", seed=1)["layer"])
    first = blocks.get_weights(together["layer"])
    kernels = [key for key in first if "kernel" in key]
    assert any(not np.array_equal(first[key], seeded[key]) for key in kernels), "other patches are looked at"


def test_layers_look_at_different_patches() -> None:
    held = subject()
    draws = [Statistics.empty(held.task("two_layer").layer, seed).generator.integers(1 << 30) for seed in (0, 1)]
    assert draws[0] != draws[1]


class Unread:
    """Images that must not be looked at."""

    def __iter__(self) -> Iterator[np.ndarray]:
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("block", "block_init", "reads"),
    [
        ("decoupled_r2", "noise", False),
        ("two_layer", "noise", False),
        ("decoupled_r2", "kernel", False),
        ("decoupled_r2", "fitted", True),
        ("two_layer", "kernel", True),
    ],
)
def test_images_are_read_only_where_they_matter(block: str, block_init: str, reads: bool) -> None:
    held = subject()
    task = held.task(block)
    built = {task.key: blocks.build_block(blocks.get(block), task.layer, 0)}
    before = blocks.get_weights(built[task.key])
    designs = {block: blocks.get(block)}
    prefix = graph.truncate(held.teacher, ["layer"])
    arguments = (built, [task], designs, held.teacher, prefix, Unread(), block_init, 0)
    if reads:
        with pytest.raises(AssertionError, match="read"):
            initialisation.initialise(*arguments)
        return
    initialisation.initialise(*arguments)
    changed = any(not np.array_equal(before[key], value) for key, value in blocks.get_weights(built[task.key]).items())
    assert changed is (block_init != "noise")


@pytest.mark.parametrize("value", [0.0, 0.7, 255.0])
@pytest.mark.parametrize("block", ["decoupled_r2", "two_layer", "spatial_svd_r33", "tucker2_r50"])
def test_a_layer_fed_a_constant_begins_finite(block: str, value: float) -> None:
    """Without a border, nothing varies: only the mean can be learned."""
    held = subject(padding="valid")
    flat = Subject(held.teacher, np.full_like(held.images, value), held.images)
    weights = blocks.get_weights(flat.begin(block, "fitted")["layer"])
    assert all(np.isfinite(array).all() for array in weights.values())
