"""Scores of channels equal those that are computed by hand."""

import dataclasses

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE
from pbd.compression import importance
from pbd.compression.importance import IMPORTANCES, Subject
from pbd.compression.pruning import gates
from pbd.data import Dataset
from pbd.networks import channels
from tests.helpers.palette import SHAPE, make_dataset, make_teacher, predict

pytestmark = pytest.mark.usefixtures("eager")

layers = keras.layers


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture
def model() -> keras.Model:
    """Return a network with a residual stream of the layers `stem` and `b`, and the layer `a` with a normalisation."""
    return make_teacher()


def subject(model: keras.Model, dataset: Dataset, seed: int = 0) -> Subject:
    groups = tuple(group for group in channels.find_groups(model) if not group.fixed)
    return Subject(model, groups, seed, lambda measure: measure(model, model, dataset, SINGLE))


def plain(x: keras.KerasTensor) -> keras.Model:
    x = layers.Conv2D(3, (1, 2), name="first")(x)
    return layers.Conv2D(2, 1, name="second")(layers.ReLU()(x))


def small(kernel: list[list[float]]) -> keras.Model:
    """Return a network whose convolution `first` has 3 filters of two values."""
    inputs = keras.Input((2, 2, 1))
    outputs = layers.GlobalAveragePooling2D()(plain(inputs))
    model = keras.Model(inputs, outputs)
    model.get_layer("first").set_weights([np.array(kernel, "float32").T.reshape(1, 2, 1, 3), np.zeros(3)])
    return model


FILTERS = [[3.0, -4.0], [1.0, 1.0], [0.0, -2.0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [7.0, 2.0, 2.0]),
        ("l2", [5.0, 2**0.5, 2.0]),
        ("geometric_median", [29**0.5 + 13**0.5, 29**0.5 + 10**0.5, 13**0.5 + 10**0.5]),
    ],
)
def test_filters_of_one_layer(name: str, expected: list[float], dataset: Dataset) -> None:
    scores = IMPORTANCES[name](subject(small(FILTERS), dataset))
    assert scores.values["first"] == pytest.approx(np.array(expected), rel=1e-6)
    assert set(scores.values) == {"first"}
    assert scores.events == ()


def test_filters_of_several_layers_are_added_after_division_by_their_mean(model: keras.Model, dataset: Dataset) -> None:
    (group, *_) = (group for group in channels.find_groups(model) if len(group.producers) > 1)
    scores = IMPORTANCES["l1"](subject(model, dataset)).values[group.name]
    parts = [np.abs(model.get_layer(name).get_weights()[0]).sum(axis=(0, 1, 2)) for name in group.producers]
    assert scores == pytest.approx(sum(part / part.mean() for part in parts), rel=1e-6)
    assert scores.sum() == pytest.approx(len(parts) * group.size)


def test_a_separable_convolution_has_the_filters_of_its_product(dataset: Dataset) -> None:
    inputs = keras.Input((4, 4, 2))
    x = layers.SeparableConv2D(3, 2, depth_multiplier=2, name="separable")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    depthwise, pointwise, _ = model.get_layer("separable").get_weights()
    whole = np.einsum("hwcm,cmo->hwcmo", depthwise, pointwise.reshape(2, 2, 3))
    scores = IMPORTANCES["l1"](subject(model, dataset)).values["separable"]
    assert scores == pytest.approx(np.abs(whole).sum(axis=(0, 1, 2, 3)), rel=1e-5)


def test_scales_of_batch_normalisations(dataset: Dataset) -> None:
    inputs = keras.Input((4, 4, 2))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 1, name="scaled")(inputs))
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 1, name="unscaled")(layers.ReLU()(x)))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    model.get_layer("norm").gamma.assign([0.5, -2.0, 0.0])
    scores = IMPORTANCES["batch_norm"](subject(model, dataset))
    assert scores.values["scaled"].tolist() == [0.5, 2.0, 0.0]
    norms = np.abs(model.get_layer("unscaled").get_weights()[0]).sum(axis=(0, 1, 2))
    assert scores.values["unscaled"] == pytest.approx(norms)
    assert scores.events == ("unscaled: no batch normalisation scales all its channels, so they get the L1 norm",)


@pytest.mark.jax
@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_is_the_squared_slope_of_the_loss_by_each_gate(labelled: bool, dataset: Dataset) -> None:
    """A linear classifier of two features: the derivative of the cross entropy by a gate is known."""
    inputs = keras.Input(SHAPE)
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="features")(inputs))
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3, name="classes")(features)))
    data = dataclasses.replace(dataset, labelled=labelled)
    scores = IMPORTANCES["taylor"](subject(model, data)).values["features"]
    kernel, bias = model.get_layer("classes").get_weights()
    total, count = np.zeros(4), 0
    for images, labels in data.batches("train", limit=gates.IMAGES):
        read = predict(keras.Model(inputs, features), np.asarray(images))
        logits = read @ kernel + bias
        classes = np.asarray(labels) if labelled else logits.argmax(axis=1)
        slope = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[classes]
        total, count = total + np.square((slope @ kernel.T) * read).sum(axis=0), count + len(read)
    assert count == 96
    assert scores == pytest.approx(total / count, rel=1e-4)


def test_gates_are_on_all_that_reads_a_channel(model: keras.Model, dataset: Dataset) -> None:
    """The slope is that of the loss if all kernels that read a channel are scaled; the network stays as it is."""
    (group, *_) = (group for group in channels.find_groups(model) if len(group.producers) > 1)
    single = dataclasses.replace(dataset, batch_size=1)
    before = model.get_weights()
    scores = gates.squared_derivatives(model, model, single, SINGLE, [group.name], images=1)[group.name]
    ((images, labels),) = list(single.batches("train", limit=1))

    def loss(network: keras.Model) -> float:
        return float(keras.losses.sparse_categorical_crossentropy(labels, network(images), from_logits=True)[0])

    step, slopes = 1e-2, []
    for channel in range(group.size):
        losses = []
        for factor in (1 + step, 1 - step):
            for name in group.readers:
                kernel, bias = model.get_layer(name).get_weights()
                kernel[..., channel, :] *= factor
                model.get_layer(name).set_weights([kernel, bias])
            losses.append(loss(model))
            model.set_weights(before)
        slopes.append((losses[0] - losses[1]) / (2 * step))
    assert np.sqrt(scores) == pytest.approx(np.abs(slopes), abs=0.02 * np.max(np.abs(slopes)))
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    assert model.trainable_variables


def test_random_scores_depend_on_the_seed_and_the_name(model: keras.Model, dataset: Dataset) -> None:
    scores = [IMPORTANCES["random"](subject(model, dataset, seed)).values for seed in (0, 0, 1)]
    assert all(np.array_equal(scores[0][name], scores[1][name]) for name in scores[0])
    assert all(not np.array_equal(scores[0][name], scores[2][name]) for name in scores[0])
    assert len({tuple(values[:3]) for values in scores[0].values()}) == len(scores[0])


def test_normalised_scores_have_length_one() -> None:
    assert importance.normalised(np.array([3.0, 4.0])).tolist() == [0.6, 0.8]
    assert importance.normalised(np.zeros(2)).tolist() == [0.0, 0.0]
