"""Groups of channels, and networks without half of them, for each kind of operation."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd.errors import UsageError
from pbd.networks import channels
from tests.helpers.narrowing import TOLERANCE, difference, half, predict, randomise

layers, ops = keras.layers, keras.ops
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
Body = Callable[[Any], Any]


def conv(name: str, filters: int = 8, **settings: Any) -> keras.Layer:
    return layers.Conv2D(filters, 3, padding="same", bias_initializer="normal", name=name, **settings)


def network(body: Body) -> keras.Model:
    """Return a classifier of random weights: a convolution `a`, the body, a convolution `z` and the layer `head`."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    inputs = keras.Input(IMAGES.shape[1:])
    x = conv("z")(body(conv("a")(inputs)))
    model = keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    return model


def chain(x: Any) -> Any:
    x = layers.Dropout(0.5)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.UpSampling2D()(layers.MaxPooling2D()(layers.ZeroPadding2D(1)(x)))
    return layers.LeakyReLU()(layers.Cropping2D(2)(layers.Rescaling(0.5)(x)))


def depthwise(x: Any) -> Any:
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="normal", activation="relu")(x)
    return layers.BatchNormalization()(x)


def one_filter_per_channel(x: Any) -> Any:
    return layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))


def separable(x: Any) -> Any:
    return layers.SeparableConv2D(6, 3, depth_multiplier=2, bias_initializer="normal", name="b")(x)


def transposed(x: Any) -> Any:
    return layers.Conv2DTranspose(6, 2, strides=2, bias_initializer="normal", name="b")(x)


def slopes(x: Any) -> Any:
    return layers.PReLU()(layers.PReLU(shared_axes=[1, 2])(layers.PReLU(shared_axes=[1, 2, 3])(x)))


def concatenated(x: Any) -> Any:
    return layers.Concatenate()([x, layers.ReLU()(conv("b", 6)(x)), x])


def concatenated_twice(x: Any) -> Any:
    """As in the last blocks of InceptionV3."""
    return layers.Concatenate()([layers.Concatenate()([conv("b", 6)(x), x]), layers.ReLU()(conv("c", 4)(x))])


def residual(x: Any) -> Any:
    return layers.Add()([x, conv("c")(layers.ReLU()(conv("b", 6)(x)))])


def gated(x: Any) -> Any:
    """Squeeze and excitation (arXiv:1709.01507), with dense layers and a reshape."""
    gate = layers.Dense(4, activation="relu", name="b")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, 8))(layers.Dense(8, activation="sigmoid", name="c")(gate))])


def gated_by_a_vector(x: Any) -> Any:
    return layers.Multiply()([x, layers.Dense(8, activation="sigmoid", name="b")(layers.GlobalMaxPooling2D()(x))])


def zero_channels(x: Any) -> Any:
    """The shortcut of ResNet-20: zeros before and behind the channels."""
    shortcut = layers.ZeroPadding2D(((0, 0), (1, 3)))(layers.Permute((1, 3, 2))(x))
    return layers.Add()([layers.Permute((1, 3, 2))(shortcut), conv("b", 12)(x)])


def flattened(x: Any) -> Any:
    x = layers.Flatten()(layers.Permute((3, 1, 2))(layers.MaxPooling2D(4)(x)))
    return layers.Reshape((1, 1, 7))(layers.Dense(7, name="b")(x))


def reshaped(x: Any) -> Any:
    return layers.Reshape((2, 2, 8))(layers.Flatten()(layers.Reshape((2, 16))(layers.MaxPooling2D(4)(x))))


def taken(x: Any) -> Any:
    return ops.take(x, [5, 1, 2, -1], axis=-1)


def shared(x: Any) -> Any:
    """The layer reads its own output."""
    layer = conv("b")
    return layer(layers.ReLU()(layer(x)))


def functions(x: Any) -> Any:
    return ops.concatenate([ops.relu(2.0 * x + 1.0), -ops.sigmoid(x) * x, ops.maximum(x, 0.1)], axis=-1)


def attention_over_space(x: Any) -> Any:
    return layers.Multiply()([x, conv("b", 1, activation="sigmoid")(x)])


FREE: list[tuple[Body, dict[str, str]]] = [
    (chain, {"a": "z"}),
    (depthwise, {"a": "z"}),
    (separable, {"a": "b", "b": "z"}),
    (transposed, {"a": "b", "b": "z"}),
    (slopes, {"a": "z"}),
    (concatenated, {"a": "bz", "b": "z"}),
    (concatenated_twice, {"a": "cbz", "b": "z", "c": "z"}),
    (residual, {"ac": "bz", "b": "c"}),
    (gated, {"ac": "bz", "b": "c"}),
    (gated_by_a_vector, {"ab": "bz"}),
    (zero_channels, {"ab": "bz"}),
    (flattened, {"a": "b", "b": "z"}),
    (reshaped, {"a": "z"}),
    (taken, {"a": "z"}),
    (shared, {"ab": "bz"}),
    (functions, {"a": "z"}),
    (attention_over_space, {"a": "bz"}),
]
"""For each body, the readers of the channels that can be removed, by their producers."""


@pytest.mark.parametrize(("body", "readers"), FREE, ids=lambda value: getattr(value, "__name__", ""))
def test_half_of_the_channels_can_be_removed(body: Body, readers: dict[str, str]) -> None:
    model = network(body)
    free = {group.producers: group.readers for group in channels.find_groups(model) if not group.fixed}
    assert free == {tuple(made): tuple(read) for made, read in {**readers, "z": ["head"]}.items()}
    kept = half(model)
    expected = predict(channels.masked(model, kept), IMAGES)
    smaller = channels.remove(model, kept)
    assert difference(predict(smaller, IMAGES), expected) < TOLERANCE
    assert difference(predict(model, IMAGES), expected) > 0.01, "the channels matter"
    assert smaller.count_params() < 0.7 * model.count_params()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


def layer_normalised(x: Any) -> Any:
    return layers.LayerNormalization(name="mixes")(x)


def group_normalised(x: Any) -> Any:
    return layers.GroupNormalization(2, name="mixes")(x)


def grouped(x: Any) -> Any:
    return layers.Conv2D(8, 1, groups=2, name="mixes")(x)


def softmax(x: Any) -> Any:
    return layers.Softmax(name="mixes")(x)


def shuffled(x: Any) -> Any:
    y = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 8, 2, 4), name="mixes")(x))
    return layers.Reshape((8, 8, 8))(y)


def pooled_over_channels(x: Any) -> Any:
    y = layers.MaxPooling2D(2, data_format="channels_last", name="mixes")(layers.Permute((3, 1, 2))(x))
    return layers.Permute((2, 3, 1))(y)


def normalised_by_row(x: Any) -> Any:
    return layers.BatchNormalization(axis=1, name="mixes")(x)


@keras.saving.register_keras_serializable("test_channels")
class Subclass(layers.BatchNormalization):
    """May compute anything."""


def subclassed(x: Any) -> Any:
    return Subclass(name="mixes")(x)


def dropped_with_a_shape(x: Any) -> Any:
    return layers.Dropout(0.5, noise_shape=(None, 1, 1, 8), name="mixes")(x)


MIXING = [
    dropped_with_a_shape,
    layer_normalised,
    group_normalised,
    grouped,
    softmax,
    shuffled,
    pooled_over_channels,
    normalised_by_row,
    subclassed,
]


@pytest.mark.parametrize("body", MIXING)
def test_an_operation_that_may_mix_channels_fixes_them(body: Body) -> None:
    model = network(body)
    fixed = {group.name: group.fixed or "" for group in channels.find_groups(model)}
    assert fixed["a"].startswith("mixes (")
    assert fixed["a"].endswith(") may mix them")
    kept = half(model)
    assert "a" not in kept
    smaller = channels.remove(model, kept)
    assert difference(predict(smaller, IMAGES), predict(channels.masked(model, kept), IMAGES)) < TOLERANCE
    with pytest.raises(UsageError, match="'a' \\(mixes"):
        channels.remove(model, {"a": [0]})


def test_activations_with_a_sum_fix_the_channels_that_they_make() -> None:
    model = network(lambda x: conv("b", activation="softmax")(x))
    assert {group.name: group.fixed for group in channels.find_groups(model)} == {
        "a": None,
        "b": "the activation of b may mix them",
        "z": None,
        "head": "they are the network's output",
    }


def test_channels_added_to_the_input_are_fixed() -> None:
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv("b")(layers.Add()([inputs, conv("a", 3)(inputs)])))
    reasons = {group.name: group.fixed for group in channels.find_groups(model)}
    assert reasons == {"a": "they are the network's input", "b": "they are the network's output"}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"b": [0]}, "'b'. Use a name"),
        ({"a": []}, "0..7. Received: \\[\\]"),
        ({"a": [0, 8]}, "0..7. Received: \\[0, 8\\]"),
        ({"head": [0]}, "they are the network's output"),
    ],
)
def test_impossible_selections_are_refused(kept: dict[str, list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        channels.remove(network(chain), kept)


def test_a_layer_must_keep_a_channel() -> None:
    """The padded group has 12 channels; those of `a` are only 8 of them."""
    model = network(zero_channels)
    with pytest.raises(UsageError, match="each tensor must keep a channel"):
        channels.remove(model, {"a": [8, 9]})


@pytest.mark.parametrize(
    ("body", "readers"),
    [
        (chain, {"a": "z", "z": "head"}),
        (residual, {"b": "c", "z": "head"}),
        (concatenated, {"z": "head"}),
        (gated, {"z": "head"}),
        (one_filter_per_channel, {"a": "z", "z": "head"}),
        (depthwise, {"z": "head"}),
        (layer_normalised, {"z": "head"}),
        (lambda x: layers.Concatenate()([conv("b", 4)(x), conv("c", 4)(x)]), {"z": "head"}),
        (lambda x: layers.Concatenate()([x, x]), {"z": "head"}),
    ],
)
def test_the_only_reader_of_a_convolution(body: Body, readers: dict[str, str]) -> None:
    assert channels.reader_of(network(body)) == readers


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (chain, {"a": ("batch_normalization", "z"), "z": ("head",)}),
        (one_filter_per_channel, {"a": ("depthwise_conv2d", "batch_normalization", "z"), "z": ("head",)}),
        (lambda x: layers.PReLU(shared_axes=[1, 2, 3], name="one_slope")(x), {"a": ("z",), "z": ("head",)}),
    ],
)
def test_layers_that_lose_what_a_convolution_loses(body: Body, paths: dict[str, tuple[str, ...]]) -> None:
    assert channels.up_to_reader(network(body)) == paths
