"""Real networks without half of their channels: the file of the pruning step computes what the masked network does."""

import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd.compression.prune_filters import PruneFilters
from pbd.learning.metrics import Metrics
from pbd.networks import channels, files, graph, heads
from pbd.run_dir.journal import Journal
from pbd.student.checkpoints import FineTuneState
from tests.helpers.applications import APPLICATIONS
from tests.helpers.narrowing import TOLERANCE, difference, predict, randomise

SIDES = {"ResNet50": 32, "DenseNet121": 32, "MobileNetV2": 32, "InceptionV3": 75, "EfficientNetB0": 32}
"""The smallest side of an image."""
load = functools.cache(files.load)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    keras.utils.clear_session()
    yield
    keras.utils.clear_session()
    gc.collect()


class NoImages:
    """Stands for the context of a step that measures and trains nothing."""

    keeps_zeros, seed, dataset, teacher = False, 0, None, None

    def __init__(self, folder: Path) -> None:
        self.journal, self.display = Journal(folder), self

    def phase(self, text: str) -> None: ...

    def evaluate(self, model: keras.Model) -> Metrics:
        return Metrics(1.0, 1.0, 0.0)

    def fine_tune(self, model: keras.Model, *_: object, **__: object) -> FineTuneState:
        return FineTuneState(self.evaluate(model), 0.0)


def check(model: keras.Model, side: int, most: float, folder: Path) -> set[str]:
    """Compare the file of the network with half of its channels with the masked network; return why others are fixed.

    Args:
        model: a classifier.
        side: of the images, in pixels.
        most: the largest part of the parameters that may remain.
        folder: for the file.
    """
    flat = heads.remove(graph.flatten(model, (side, side, 3)))
    step, context = PruneFilters(ratio=0.5, importance="random", refit=False), NoImages(folder)
    kept, _ = step.choose(flat, step.groups(flat), step.ratio, context)
    images = np.random.default_rng(1).uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    expected = predict(channels.masked(flat, {name: each.tolist() for name, each in kept.items()}), images)
    assert np.ptp(expected) > 1e-3 * np.abs(expected).max(), "equal logits cannot tell networks apart"
    step.apply(flat, context)
    pruned = keras.models.load_model(folder / "round_1.keras")
    assert difference(predict(pruned, images), expected) < TOLERANCE
    assert pruned.count_params() < most * flat.count_params()
    return {group.fixed for group in channels.find_groups(flat) if group.fixed}


def vgg() -> keras.Model:
    """Return a VGG with batch normalisation, for images of 32x32 pixels."""
    x = inputs = keras.Input((32, 32, 3))
    for convolutions, filters in ((1, 16), (2, 32), (2, 64)):
        for _ in range(convolutions):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("name", SIDES)
def test_applications(name: str, tmp_path: Path) -> None:
    model = APPLICATIONS[name](weights=None, input_shape=(SIDES[name], SIDES[name], 3), classes=10)
    randomise(model)
    assert check(model, SIDES[name], 0.35, tmp_path) == {"they are the network's output"}


def test_layer_normalisations_fix_the_residual_streams_of_convnext(tmp_path: Path) -> None:
    model = APPLICATIONS["ConvNeXtTiny"](weights=None, input_shape=(32, 32, 3), classes=10)
    randomise(model)
    reasons = check(model, 32, 0.7, tmp_path)
    assert "convnext_tiny_stem_layernorm (LayerNormalization) may mix them" in reasons


def test_vgg(tmp_path: Path) -> None:
    model = vgg()
    randomise(model)
    assert check(model, 32, 0.3, tmp_path) == {"they are the network's output"}


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet56_cifar10"])
def test_residual_networks_trained_by_others(name: str, shared_teachers: Path, tmp_path: Path) -> None:
    model = load(str(shared_teachers / f"{name}.keras"))
    assert check(model, 32, 0.3, tmp_path) == {"they are the network's output"}


def test_the_widths_of_residual_networks_are_shared_along_the_shortcuts(shared_teachers: Path) -> None:
    """Shortcuts without weights connect the channels of all stages of ResNet20: there are 64 of them."""
    model = graph.flatten(load(str(shared_teachers / "resnet20_cifar10.keras")), (32, 32, 3))
    stream, *inner = channels.find_groups(model)
    assert stream.producers == ("conv1", *(f"layer{s}_{b}_conv2" for s in (1, 2, 3) for b in (0, 1, 2)))
    assert stream.readers == (*(f"layer{s}_{b}_conv1" for s in (1, 2, 3) for b in (0, 1, 2)), "logits")
    assert stream.size == 64
    assert [(group.producers, group.readers) for group in inner[:-1]] == [
        ((f"layer{s}_{b}_conv1",), (f"layer{s}_{b}_conv2",)) for s in (1, 2, 3) for b in (0, 1, 2)
    ]
