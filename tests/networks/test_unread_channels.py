"""Channels that no layer reads are removed, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.networks import channels, cost, files, graph
from pbd.records import Layer
from tests.helpers.narrowing import TOLERANCE, difference, predict, randomise, with_narrow_inputs

layers, ops = keras.layers, keras.ops
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
LAYER = Layer(
    *(0, "conv", (3, 3), (1, 1), (1, 1), "same", "relu", (8, 8, 32), (8, 8, 32)),
    prefix_macs=9 * 32 * 32 * 64,
    macs=9 * 32 * 32 * 64,
    params=9 * 32 * 32,
)


def conv(name: str, filters: int = 8, **settings: Any) -> keras.Layer:
    return layers.Conv2D(filters, 3, padding="same", bias_initializer="normal", name=name, **settings)


def network(body: Callable[[Any], Any]) -> keras.Model:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    inputs = keras.Input(IMAGES.shape[1:])
    x = layers.GlobalAveragePooling2D()(body(inputs))
    model = keras.Model(inputs, layers.Dense(5, name="head")(x))
    randomise(model)
    return model


def reduced(model: keras.Model) -> keras.Model:
    """Return the model without unread channels; check that it computes the same and that it is a smaller one."""
    smaller = channels.remove_unread(model)
    assert difference(predict(smaller, IMAGES), predict(model, IMAGES)) < TOLERANCE
    assert channels.remove_unread(smaller) is smaller
    return smaller


def widths(model: keras.Model) -> dict[str, int]:
    return {layer.name: layer.filters for layer in model.layers if isinstance(layer, layers.Conv2D)}


def takes(model: keras.Model) -> list[str]:
    return [operation.name for operation in model.operations if type(operation).__name__ == "Take"]


def normalised(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x)))


def test_channels_that_a_take_leaves_out_are_removed_and_the_take_vanishes() -> None:
    smaller = reduced(network(lambda x: conv("b")(ops.take(normalised(conv("a")(x)), [1, 4, 6], axis=-1))))
    assert widths(smaller) == {"a": 3, "b": 8}
    assert not takes(smaller)


def test_an_order_of_channels_is_kept() -> None:
    smaller = reduced(network(lambda x: conv("b")(ops.take(normalised(conv("a")(x)), [6, 1, 4], axis=-1))))
    assert widths(smaller) == {"a": 3, "b": 8}
    assert len(takes(smaller)) == 1


def test_two_readers_need_the_channels_of_both() -> None:
    def body(x: Any) -> Any:
        x = normalised(conv("a")(x))
        return layers.Add()([conv("b")(ops.take(x, [1, 4], axis=-1)), conv("c")(ops.take(x, [4, 6], axis=-1))])

    smaller = reduced(network(body))
    assert widths(smaller) == {"a": 3, "b": 8, "c": 8}
    assert len(takes(smaller)) == 2


def test_a_network_that_reads_all_its_channels_is_returned_itself() -> None:
    def body(x: Any) -> Any:
        x = normalised(conv("a")(x))
        return layers.Add()([conv("b")(ops.take(x, [1, 4], axis=-1)), conv("c")(x)])

    model = network(body)
    assert channels.remove_unread(model) is model


def test_a_take_of_all_channels_vanishes() -> None:
    smaller = reduced(network(lambda x: conv("b")(ops.take(conv("a")(x), list(range(8)), axis=-1))))
    assert widths(smaller) == {"a": 8, "b": 8}
    assert not takes(smaller)


def test_kernels_of_zeros_read_nothing_and_neither_do_the_layers_before_them() -> None:
    model = network(lambda x: conv("c")(layers.SeparableConv2D(6, 3, name="b")(conv("a")(x))))
    kernel, bias = model.get_layer("c").get_weights()
    kernel[:, :, 2:] = 0
    model.get_layer("c").set_weights([kernel, bias])
    depthwise, pointwise, bias = model.get_layer("b").get_weights()
    pointwise[:, :, [0, 3, 5], :2] = 0  # nothing that is read depends on these channels
    depthwise[:, :, 7] = 0
    model.get_layer("b").set_weights([depthwise, pointwise, bias])
    smaller = reduced(model)
    assert widths(smaller) == {"a": 4, "c": 8}
    assert smaller.get_layer("b").filters == 2


def test_a_channel_of_a_residual_stream_needs_one_reader() -> None:
    def body(x: Any) -> Any:
        stem = conv("stem")(x)
        block = conv("b")(layers.ReLU()(conv("a")(ops.take(stem, [0, 1, 2], axis=-1))))
        return conv("c")(ops.take(layers.Add()([stem, block]), [2, 3], axis=-1))

    smaller = reduced(network(body))
    assert widths(smaller) == {"stem": 4, "a": 8, "b": 4, "c": 8}


def test_a_shared_layer_is_read_at_all_its_calls() -> None:
    def body(x: Any) -> Any:
        layer = conv("b")
        return ops.take(layer(layers.ReLU()(layer(conv("a")(x)))), [0, 1], axis=-1)

    model = network(body)
    kernel, bias = model.get_layer("b").get_weights()
    kernel[:, :, 5:] = 0
    kernel[:, :, 2, :2] = 0
    model.get_layer("b").set_weights([kernel, bias])
    assert widths(reduced(model)) == {"a": 5, "b": 5}, "output 2 is needed by output 3 or 4, which are needed"


def test_each_tensor_keeps_a_channel() -> None:
    model = network(lambda x: conv("b")(conv("a")(x)))
    kernel, bias = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([np.zeros_like(kernel), bias])
    assert widths(reduced(model)) == {"a": 1, "b": 8}


def test_settings_of_layers_are_kept_and_the_file_opens(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        x = conv("a", kernel_regularizer="l2", dtype="mixed_bfloat16", trainable=False)(x)
        return conv("b")(ops.take(layers.BatchNormalization(trainable=False, name="norm")(x), [5, 3], axis=-1))

    model = network(body)
    before = model.get_weights()
    smaller = reduced(model)
    assert all(np.array_equal(x, y) for x, y in zip(model.get_weights(), before, strict=True))
    assert smaller.name == model.name
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    for name in ("a", "norm", "b"):
        old, new = (net.get_layer(name).get_config() for net in (model, smaller))
        assert {key: old[key] for key in old if key not in ("filters", "build_config")} == {
            key: new[key] for key in new if key not in ("filters", "build_config")
        }
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    assert np.array_equal(predict(loaded, IMAGES), predict(smaller, IMAGES))
    assert channels.remove_unread(loaded) is loaded


def test_the_takes_of_a_loaded_network_are_understood(tmp_path: Path) -> None:
    model = network(lambda x: conv("b")(ops.take(conv("a")(x), np.array([5, 3]), axis=-1)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert widths(reduced(loaded)) == {"a": 2, "b": 8}


def test_narrow_second_convolutions_of_resnet20(shared_teachers: Path) -> None:
    """The second convolution of each residual block reads half of the first one's channels."""
    model = graph.flatten(files.load(str(shared_teachers / "resnet20_cifar10.keras")), (32, 32, 3))
    pairs = {made: read for made, read in channels.reader_of(model).items() if read != "logits"}
    assert pairs == {f"layer{s}_{b}_conv1": f"layer{s}_{b}_conv2" for s in (1, 2, 3) for b in (0, 1, 2)}
    student = with_narrow_inputs(
        model, {read: list(range(0, model.get_layer(made).filters, 2)) for made, read in pairs.items()}
    )
    smaller = channels.remove_unread(student)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    assert difference(predict(smaller, images), predict(student, images)) < TOLERANCE
    assert difference(predict(smaller, images), predict(model, images)) > TOLERANCE
    assert not takes(smaller)
    assert cost.count_macs(smaller) == pytest.approx(cost.count_macs(model) / 2, rel=0.02)


def block(design: str) -> keras.Model:
    keras.utils.clear_session(free_memory=False)
    model = blocks.build_block(blocks.get(design), LAYER, seed=0)
    randomise(model)
    return model


@pytest.mark.parametrize("design", ["two_layer", "three_layer", "decoupled_r2", "spatial_svd_r50", "tucker2_r50"])
def test_a_restricted_block_computes_its_first_outputs(design: str) -> None:
    whole = block(design)
    part = channels.restricted(whole, 8)
    images = np.random.default_rng(0).normal(size=(2, *LAYER.input_shape)).astype(np.float32)
    assert part.output.shape == (None, 8, 8, 8)
    assert difference(predict(part, images), predict(whole, images)[..., :8]) < TOLERANCE
    assert cost.count_macs(part) < cost.count_macs(whole)


def test_a_block_that_reads_all_its_outputs_is_not_restricted() -> None:
    whole = block("two_layer_skip")
    assert channels.restricted(whole, 8).output.shape == whole.output.shape


@pytest.mark.parametrize("outputs", [4, 8])
def test_a_restricted_block_has_no_take_before_its_layers(outputs: int) -> None:
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 16))
    y = conv("b", kernel_initializer="zeros")(ops.take(inputs, [3, 5, 9], axis=-1))
    part = channels.restricted(keras.Model(inputs, y), outputs)
    assert part.inputs[0].shape == (None, 8, 8, 3)
    assert part.outputs[0].shape == (None, 8, 8, outputs)
    assert cost.count_macs(part) == 8 * 8 * 9 * 3 * outputs
    assert not takes(part)
