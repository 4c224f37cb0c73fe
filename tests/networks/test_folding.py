"""Folding: the same outputs from fewer layers, whatever the network looks like around them."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from tests.helpers.swapping import swap_blocks

IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 12, 12, 6)).astype(np.float32)


def network(build: Callable[[Any], Any]) -> Any:
    """Return a classifier around what `build` makes of six channels, all its weights and statistics drawn at random."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGES.shape[1:])
    outputs = keras.layers.Dense(5, name="head")(keras.layers.GlobalAveragePooling2D()(build(inputs)))
    model = keras.Model(inputs, outputs, name="small")
    draws = np.random.default_rng(1)
    model.set_weights([draws.uniform(0.2, 1.0, weight.shape).astype(np.float32) for weight in model.get_weights()])
    return model


def kinds(model: Any) -> collections.Counter[str]:
    return collections.Counter(type(layer).__name__ for layer in model.layers)


def predict(model: Any) -> np.ndarray:
    return np.asarray(model(IMAGES, training=False))


def folded(model: Any) -> Any:
    """Return the folded network; check that its outputs are the same and that the original is unchanged."""
    from pbd.deploy import inference_form

    before = model.get_weights()
    result = inference_form.fold(model)
    expected, outputs = predict(model), predict(result)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert all(np.array_equal(x, y) for x, y in zip(model.get_weights(), before, strict=True))
    return result


def normalised(layer: Any) -> Callable[[Any], Any]:
    import keras

    return lambda x: keras.layers.ReLU()(keras.layers.BatchNormalization()(layer(x)))


def test_what_tensorflow_does_not_compile_is_folded_in_front_of_every_sum() -> None:
    """TensorFlow computes a convolution with a bias, a sum and a leaky ReLU wrongly; other runtimes fold them."""
    import keras

    from pbd.networks import folding, graph

    def residual(x: Any) -> Any:
        y = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, padding="same", use_bias=False)(x))
        return keras.layers.LeakyReLU()(keras.layers.Add()([y, x]))

    flat = graph.flatten(network(residual))
    assert kinds(folding.fold_all(flat))["BatchNormalization"] == 1
    form = folding.fold_all(flat, runs_in_tensorflow=False)
    assert kinds(form)["BatchNormalization"] == 0
    np.testing.assert_allclose(predict(form), predict(flat), rtol=1e-4)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Conv2D", {"filters": 8, "kernel_size": 3, "strides": 2}),
        ("Conv2D", {"filters": 8, "kernel_size": 3, "groups": 2, "dilation_rate": 2}),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}),
        ("SeparableConv2D", {"filters": 8, "kernel_size": 3, "padding": "same"}),
        ("Dense", {"units": 7}),
    ],
)
def test_a_normalisation_is_folded_into_the_layer_before_it(
    kind: str, settings: dict[str, Any], use_bias: bool
) -> None:
    import keras

    result = folded(network(normalised(getattr(keras.layers, kind)(**settings, use_bias=use_bias))))
    assert "BatchNormalization" not in kinds(result)


@pytest.mark.parametrize("settings", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_normalisations_without_scale_or_shift(settings: dict[str, bool]) -> None:
    import keras

    layers = keras.layers
    result = folded(network(lambda x: layers.BatchNormalization(**settings)(layers.Conv2D(4, 3)(x))))
    assert "BatchNormalization" not in kinds(result)


def test_layers_whose_output_is_used_elsewhere_are_not_folded() -> None:
    import keras

    layers = keras.layers

    def read_twice(x: Any) -> Any:
        x = layers.Conv2D(6, 3, padding="same")(x)
        return layers.Add()([x, layers.BatchNormalization()(x)])

    def called_twice(x: Any) -> Any:
        shared, norm = layers.Conv2D(6, 3, padding="same"), layers.BatchNormalization()
        return norm(shared(norm(shared(x))))

    def activated(x: Any) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(6, 3, activation="relu")(x))

    def over_rows(x: Any) -> Any:
        return layers.BatchNormalization(axis=1)(layers.Conv2D(6, 3)(x))

    for build in (read_twice, called_twice, activated, over_rows):
        model = network(build)
        assert kinds(folded(model)) == kinds(model)


def test_pooling_of_single_pixels_becomes_max_pooling() -> None:
    import keras

    layers = keras.layers

    def build(x: Any) -> Any:
        subsample = layers.AveragePooling2D(1, strides=2, padding="same")
        x = layers.AveragePooling2D(2, strides=1)(layers.Conv2D(6, 3)(x))
        return layers.Add()([subsample(x), subsample(layers.Conv2D(6, 1)(x))])

    counts = kinds(folded(network(build)))
    assert (counts["MaxPooling2D"], counts["AveragePooling2D"]) == (1, 1)


@pytest.mark.parametrize("block", ["decoupled_r1", "decoupled_r2", "decoupled_r3", "two_layer", "two_layer_skip"])
def test_a_student_is_folded_and_opens_without_pbd(block: str, tmp_path: Path) -> None:
    """A residual network: one block before a normalisation, one with its own activation, one before a join."""
    import keras

    from pbd.blockwise.tasks import enumerate_tasks

    layers = keras.layers

    def build(x: Any) -> Any:
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name="a")(layers.Conv2D(12, 1)(x))
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(12, 3, padding="same", activation="relu", name="b")(y)
        y = layers.Conv2D(12, 3, padding="same", name="c")(y)
        return layers.Add()([layers.Conv2D(12, 1)(x), y])

    teacher = network(build)
    student = swap_blocks(teacher, enumerate_tasks(teacher, blocks.get(block), include_unprofitable=True))
    draws = np.random.default_rng(2)
    student.set_weights([draws.uniform(0.1, 0.4, weight.shape).astype(np.float32) for weight in student.get_weights()])
    result = folded(student)
    assert kinds(result)["Concatenate"] == 0
    behind_a_sum = 1 if block == "two_layer_skip" else 0
    assert kinds(result)["BatchNormalization"] == behind_a_sum
    result.save(tmp_path / "folded.keras")
    again = keras.models.load_model(tmp_path / "folded.keras")
    assert np.array_equal(predict(again), predict(result))
