"""Real networks: those of keras.applications, and the teachers in ../shared, through the whole graph surgery."""

import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks.depthwise import FEWEST_CHANNELS
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import TeacherConfig
from pbd.errors import BadInputError
from pbd.networks import cost, files, graph
from pbd.pipeline import built_in
from pbd.records import BlockTask
from pbd.system import keras_state
from tests.helpers.applications import APPLICATIONS
from tests.helpers.swapping import swap_blocks

BLOCK = "two_layer"
# Convolutions with a kernel other than 1x1, how many of them a block makes cheaper, and a small image side. A stem sees
# the three channels of an RGB image: none is replaced unless asked for, though a block makes some of them cheaper.
# The networks have fewer blocks than those in the literature, of every kind.
NETWORKS = {
    "VGG16": (13, 12, 32),
    "ResNet50V2": (5, 5, 64),
    "DenseNet121": (7, 7, 64),
    "MobileNetV2": (1, 0, 64),
}
load = functools.cache(files.load)


@dataclass(frozen=True)
class Subject:
    """A network, its flat copy, and what to do with it."""

    name: str
    original: keras.Model
    flat: keras.Model
    tasks: tuple[BlockTask, ...]
    images: np.ndarray


def randomise_normalisations(model: keras.Model) -> None:
    """Fresh normalisations are all alike: a copy that mixes them up would go unnoticed."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.6, 1.4, weight.shape) for weight in layer.get_weights()])


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Iterator[Subject]:
    side = NETWORKS[request.param][2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, request.param, APPLICATIONS[request.param])
        original = built_in.build(TeacherConfig(teacher=request.param), (side, side, 3), 10, seed=0)
    randomise_normalisations(original)
    flat = graph.flatten(original, (side, side, 3))
    tasks = enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True)
    images = np.random.default_rng(1).uniform(-1, 1, (2, side, side, 3)).astype("float32")
    yield Subject(request.param, original, flat, tasks, images)
    keras.utils.clear_session()
    gc.collect()


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


def profitable(tasks: tuple[BlockTask, ...]) -> list[BlockTask]:
    return [task for task in tasks if task.macs < task.layer.macs]


def test_every_convolution_is_found(network: Subject) -> None:
    count, cheaper, _ = NETWORKS[network.name]
    assert len(network.tasks) == count
    assert len(profitable(network.tasks)) == cheaper
    assert [task.skip_reason for task in network.tasks] == [None] * count


def test_all_but_the_stem_is_replaced_by_default(network: Subject) -> None:
    stem, *others = network.tasks
    assert stem.layer.input_shape[-1] == 3
    assert all(task.layer.input_shape[-1] >= FEWEST_CHANNELS and task in profitable(network.tasks) for task in others)
    reason = "input channels: 3" if stem in profitable(network.tasks) else "its block costs"
    with pytest.raises(BadInputError, match=reason):
        enumerate_tasks(network.flat, blocks.get(BLOCK), patterns=(stem.layer.name,))


def test_copies_compute_exactly_what_the_original_does(network: Subject) -> None:
    expected = predict(network.original, network.images)
    assert np.ptp(expected) > 1e-6, "an output that says nothing cannot tell copies apart"
    assert np.abs(predict(network.flat, network.images) - expected).max() == 0.0
    assert np.abs(predict(swap_blocks(network.flat, []), network.images) - expected).max() == 0.0


def test_a_swapped_network_keeps_its_shapes_and_opens_without_custom_objects(network: Subject, tmp_path: Path) -> None:
    chosen = profitable(network.tasks) or list(network.tasks)
    student = swap_blocks(network.flat, chosen)
    replaced = {task.layer.name for task in chosen}
    shapes = {layer.name: layer.output.shape for layer in student.layers}
    kept = [layer for layer in network.flat.layers if layer.name not in replaced]
    assert not replaced & shapes.keys()
    assert {layer.name: shapes[layer.name] for layer in kept} == {layer.name: layer.output.shape for layer in kept}
    assert student.output.shape == network.flat.output.shape

    path = tmp_path / "student.keras"
    student.save(path)
    expected = predict(student, network.images)
    assert np.isfinite(expected).all()
    assert np.abs(predict(keras.models.load_model(path), network.images) - expected).max() == 0.0


@pytest.mark.parametrize(
    ("name", "side", "macs"),
    [
        ("VGG16", 224, 15.47e9),
        ("ResNet50", 224, 3.86e9),
        ("MobileNetV2", 224, 0.301e9),
        ("InceptionV3", 299, 5.71e9),
    ],
)
def test_multiply_accumulates_match_published_ones(name: str, side: int, macs: float) -> None:
    with keras_state.without_values():  # the weights of VGG16 would take half a gigabyte
        model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3))
    assert cost.count_macs(model) == pytest.approx(macs, rel=0.01)
    del model
    keras.utils.clear_session()
    gc.collect()


def test_multiply_accumulates_of_resnet20_match_the_published_ones(shared_teachers: Path) -> None:
    model = load(str(shared_teachers / "resnet20_cifar10.keras"))
    assert cost.count_macs(model) == pytest.approx(40.6e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("resnet20_cifar10", 19), ("vgg6_cifar10", 6), ("nascifarnet_cifar10", 6)],
)
def test_teachers_trained_by_others_are_read_exactly(name: str, convolutions: int, shared_teachers: Path) -> None:
    model = load(str(shared_teachers / f"{name}.keras"))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    flat = graph.flatten(model, (32, 32, 3))
    tasks = enumerate_tasks(flat, blocks.get(BLOCK))
    assert len(tasks) == convolutions
    assert [task.layer.name for task in tasks if task.skip_reason] == [tasks[0].layer.name], "the stem"
    expected = predict(model, images)
    assert np.abs(predict(flat, images) - expected).max() == 0.0
    assert np.abs(predict(swap_blocks(flat, []), images) - expected).max() == 0.0
