"""Multiply-accumulates by hand, accuracy over uneven batches, probabilities told from logits."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from pbd import evaluation

layers = keras.layers


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (layers.Conv2D(5, 3), 8 * 8 * 9 * 4 * 5),
        (layers.Conv2D(5, 3, padding="same", strides=2, use_bias=False), 5 * 5 * 9 * 4 * 5),
        (layers.Conv2D(6, 3, groups=2), 8 * 8 * 9 * 2 * 6),
        (layers.Conv2D(5, (1, 7), dilation_rate=(1, 1)), 10 * 4 * 7 * 4 * 5),
        (layers.Conv2D(5, 3, data_format="channels_first"), 8 * 2 * 9 * 10 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 8 * 8 * 9 * 4 * 2),
        (layers.SeparableConv2D(5, 3, strides=2, padding="same"), 5 * 5 * (9 * 4 + 4 * 5)),
        (layers.Conv2DTranspose(5, 3, strides=2), 10 * 10 * 9 * 4 * 5),
        (layers.Dense(7), 10 * 10 * 4 * 7),
        (layers.BatchNormalization(), 0),
        (layers.MaxPooling2D(), 0),
    ],
)
def test_multiply_accumulates_of_a_layer(layer: keras.Layer, macs: int) -> None:
    inputs = keras.Input((10, 10, 4))
    model = keras.Model(inputs, layer(inputs))
    assert evaluation.layer_macs(layer) == macs
    assert evaluation.count_macs(model) == macs
    layer.trainable = False
    assert evaluation.layer_macs(layer) == macs


def test_a_shared_layer_counts_at_each_call_of_this_model_only() -> None:
    inputs = keras.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    once = shared(inputs)
    model = keras.Model(inputs, shared(shared(once)))
    assert evaluation.count_macs(model) == 3 * 36 * 9 * 16
    assert evaluation.count_macs(keras.Model(inputs, once)) == 36 * 9 * 16
    assert {layer.name: calls for layer, calls in evaluation.layer_calls(model)}["shared"] == 3


def test_parameters_include_batch_statistics() -> None:
    inputs = keras.Input((6, 6, 4))
    assert evaluation.count_params(keras.Model(inputs, layers.BatchNormalization()(inputs))) == 16


def scores(offset: int) -> keras.Model:
    """Return a model whose largest output is at the image's value plus an offset, modulo 4."""
    inputs = keras.Input((1,))
    shift = layers.Dense(4, use_bias=False, name="shift")
    model = keras.Model(inputs, shift(layers.CategoryEncoding(4, output_mode="one_hot")(inputs)))
    shift.set_weights([np.roll(np.eye(4, dtype="float32"), offset, axis=1)])
    return model


def test_accuracy_weighs_images_and_not_batches() -> None:
    images = np.array([[0], [1], [2], [3], [0]])
    labels = np.array([0, 1, 2, 0, 1])
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    assert evaluation.accuracy(scores(0), batches) == pytest.approx(3 / 5)
    assert evaluation.accuracies([scores(0), scores(1)], batches) == pytest.approx([3 / 5, 2 / 5])


def test_the_data_is_read_once_for_all_models() -> None:
    def once() -> Iterator[tuple[Any, Any]]:
        yield np.array([[0], [1]]), np.array([0, 0])

    assert evaluation.accuracies([scores(0), scores(0)], once()) == [0.5, 0.5]


def test_the_forward_rate_is_that_of_the_median_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(ticks))
    inputs = keras.Input((10,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    monkeypatch.setattr(model, "predict_on_batch", lambda images: images)
    assert evaluation.forward_rate(model, np.zeros((8, 10))) == 30 * 8 / 2.0


@pytest.mark.parametrize(
    ("activation", "probabilities"), [("softmax", True), ("linear", False), ("relu", False), ("sigmoid", False)]
)
def test_probabilities_are_told_from_logits(activation: str, probabilities: bool) -> None:
    inputs = keras.Input((6,))
    dense = layers.Dense(4, activation=activation, kernel_initializer=keras.initializers.RandomNormal(seed=0))
    images = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    assert evaluation.ends_in_probabilities(keras.Model(inputs, dense(inputs)), images) is probabilities
