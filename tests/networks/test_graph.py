"""Reading and rewriting teachers: small hand-made graphs, one for each thing that real ones contain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from experiments.paper_scheme import output_with
from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import cost, graph
from tests.helpers.small_graphs import BLOCK, classifier, conv, difference, images, predict, reasons, residual, swap_all
from tests.helpers.swapping import swap_blocks

pytestmark = pytest.mark.usefixtures("fresh_names")

layers = keras.layers


def concatenated(x: Any) -> Any:
    return layers.Concatenate()([conv("left")(x), conv("right", kernel=5)(x), layers.AveragePooling2D(1)(x)])


def computed(x: Any) -> Any:
    x = conv("a")(x * 2.0 + 1.0)
    x = keras.ops.concatenate([x, keras.ops.relu(-x)], axis=-1)
    return conv("b")(x[:, ::2, ::2])


BODIES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "residual sums": (residual, ["a1", "a2", "b1"]),
    "concatenation": (concatenated, ["left", "right"]),
    "stride 2": (lambda x: conv("c", strides=2)(x), ["c"]),
    "stride 3, valid": (lambda x: conv("c", padding="valid", strides=3)(x), ["c"]),
    "valid padding": (lambda x: conv("b", padding="valid")(conv("a", padding="valid")(x)), ["a", "b"]),
    "1x7 and 7x1": (lambda x: conv("tall", kernel=(7, 1))(conv("wide", kernel=(1, 7))(x)), ["wide", "tall"]),
    "7x1, valid": (lambda x: conv("tall", kernel=(7, 1), padding="valid")(x), ["tall"]),
    "even kernel": (lambda x: conv("c", kernel=4)(x), ["c"]),
    "dilation 2": (lambda x: conv("c", dilation_rate=2)(x), ["c"]),
    "dilation 2, valid": (lambda x: conv("c", dilation_rate=2, padding="valid")(x), ["c"]),
    "no bias": (lambda x: conv("c", use_bias=False)(x), ["c"]),
    "activation inside": (lambda x: conv("c", activation="relu")(x), ["c"]),
    "activation after": (lambda x: layers.Activation("tanh")(conv("c")(x)), ["c"]),
    "grouped convolution": (lambda x: conv("c", groups=4)(x), ["c"]),
    "depthwise left alone": (lambda x: layers.DepthwiseConv2D(3, name="d")(conv("c")(x)), ["c"]),
    "separable left alone": (lambda x: layers.SeparableConv2D(8, 3, name="s")(conv("c")(x)), ["c"]),
    "transposed left alone": (lambda x: layers.Conv2DTranspose(8, 3, name="t")(conv("c")(x)), ["c"]),
    "operations": (computed, ["a", "b"]),
    "dropout": (lambda x: layers.Dropout(0.5)(layers.GaussianNoise(0.1)(conv("c")(x))), ["c"]),
}


@pytest.mark.parametrize("case", BODIES)
def test_surgery_is_exact_and_keeps_shapes(case: str, tmp_path: Path) -> None:
    body, expected = BODIES[case]
    model = classifier(body)
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert difference(model, swap_blocks(flat, [])) == 0.0
    tasks = swap_all(flat, tmp_path)
    assert [task.layer.name for task in tasks] == expected
    for task in tasks:
        layer = model.get_layer(task.layer.name)
        assert (task.layer.input_shape, task.layer.output_shape) == (layer.input.shape[1:], layer.output.shape[1:])
        assert task.layer.params == layer.count_params()


def test_changing_a_copy_leaves_the_teacher_alone() -> None:
    model = classifier(residual)
    before = [weight.copy() for weight in model.get_weights()]
    flat = graph.flatten(model)
    for copy in (flat, swap_blocks(flat, [])):
        copy.set_weights([weight + 1.0 for weight in copy.get_weights()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_on_sequences_are_counted_for_each_position() -> None:
    sequence = keras.Input((10, 6))
    attended, _ = layers.MultiHeadAttention(2, 3)(sequence, sequence, return_attention_scores=True)
    model = keras.Model(sequence, layers.LSTM(4)(attended))
    assert cost.layer_macs(model.layers[-1]) == 10 * (6 + 4) * 4 * 4
    assert cost.layer_macs(model.layers[1]) == 10 * 4 * 6 * (2 * 3)


def test_a_layer_called_twice_is_skipped_in_words_and_stays_shared(tmp_path: Path) -> None:
    twice = conv("twice", 8)
    model = classifier(lambda x: conv("last")(twice(twice(x))))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert reasons(flat) == {"twice": "called 2 times: one block cannot learn from several inputs", "last": None}
    assert flat.count_params() == model.count_params()
    assert cost.count_macs(flat) == 144 * 9 * 8 * (8 + 8 + 16) + 16 * 5
    swap_all(flat, tmp_path)
    keras.Model(flat.inputs[0], flat.get_layer("last").output)(images())
    assert reasons(flat)["last"] is None, "calls of other models do not count"


def test_truncate_gives_input_and_output_and_only_what_feeds_them() -> None:
    flat = graph.flatten(classifier(residual))
    cut = graph.truncate(flat, ["a2", "a1"])
    assert not {"b1", "short", "logits"} & {layer.name for layer in cut.layers}
    activations = cut(images())
    for name in ("a1", "a2"):
        x, y = activations[name]
        np.testing.assert_array_equal(predict(flat.get_layer(name), x), y)
    np.testing.assert_array_equal(activations["a1"][0], images())


def test_an_output_with_a_block_hangs_on_the_models_own_layers() -> None:
    shared = layers.ReLU(name="shared")
    flat = graph.flatten(classifier(lambda x: residual(shared(conv("first", 8)(shared(x))))))
    for task in enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True):
        name = task.layer.name
        block = blocks.build_block(blocks.get(BLOCK), task.layer, seed=4)
        alone = swap_blocks(flat, [task])
        blocks.set_weights(alone, blocks.get_weights(block))
        variant = keras.Model(flat.inputs[0], output_with(flat, name, block))
        np.testing.assert_allclose(predict(variant, images()), predict(alone, images()), rtol=1e-5, atol=1e-6)
        assert variant.get_layer("logits") is flat.get_layer("logits")
        assert name not in {layer.name for layer in variant.layers}
