"""A network and its variants in one pass have the outputs that each of them has alone."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from experiments.paper_scheme import output_with
from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import graph, variants
from pbd.records import RESIDUAL, BlockKey

layers = keras.layers
BLOCK = "decoupled_r1"
SHAPE = (12, 12, 8)


def conv(name: str, filters: int = 8, **settings: Any) -> keras.Layer:
    return layers.Conv2D(filters, 3, padding="same", bias_initializer="normal", name=name, **settings)


def chain(x: Any) -> Any:
    return conv("b", strides=2)(layers.ReLU()(conv("a")(x)))


def residual(x: Any) -> Any:
    y = conv("b")(layers.ReLU()(conv("a")(x)))
    return conv("c")(layers.Add()([x, y]))


def dense(x: Any) -> Any:
    for name in "abc":
        x = layers.Concatenate()([x, conv(name)(layers.ReLU()(x))])
    return x


def branches(x: Any) -> Any:
    """Both branches differ in layers of their own, the longer one in more."""
    left = conv("c")(conv("b")(conv("a")(x)))
    right = conv("e")(conv("d")(x))
    return layers.Concatenate()([right, left, keras.ops.tanh(left)])


def shared_activation(x: Any) -> Any:
    relu = layers.ReLU(name="shared")
    return relu(conv("b")(relu(conv("a")(relu(x)))))


def unused(x: Any) -> Any:
    """The second convolution is multiplied by zero: its variant has the network's outputs."""
    return layers.Add()([conv("a")(x), 0.0 * conv("b")(x)])


BODIES = [chain, residual, dense, branches, shared_activation, unused]


def network(body: Callable[[Any], Any]) -> tuple[keras.Model, dict[BlockKey, keras.Model]]:
    """Return a flat classifier of random weights, and a block for each of its convolutions."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(body(inputs)))
    flat = graph.flatten(keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))))
    tasks = enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True)
    return flat, {task.key: blocks.build_block(blocks.get(BLOCK), task.layer, seed=4) for task in tasks}


@pytest.mark.parametrize("body", BODIES)
def test_every_variant_is_the_network_with_its_block(body: Callable[[Any], Any]) -> None:
    flat, built = network(body)
    images = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype("float32")
    network_output, *others = variants.run(flat, built, images)
    expected = flat(images, training=False)
    np.testing.assert_allclose(network_output, expected, rtol=1e-5, atol=1e-6)
    assert len(others) == len(built)
    for outputs, (key, block) in zip(others, built.items(), strict=True):
        alone = keras.Model(flat.inputs[0], output_with(flat, key.layer, block))(images, training=False)
        np.testing.assert_allclose(outputs, alone, rtol=1e-5, atol=1e-6)
        assert (np.abs(alone - expected).max() > 1e-4) == (body is not unused or key.layer == "a")


def test_a_layer_runs_once_whatever_the_number_of_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, built = network(residual)
    ran: list[tuple[str, int]] = []
    call = layers.Conv2D.call
    monkeypatch.setattr(layers.Conv2D, "call", lambda self, x: ran.append((self.name, x.shape[0])) or call(self, x))
    variants.run(flat, built, np.zeros((4, *SHAPE), "float32"))
    assert [one for one in ran if one[0] in {key.layer for key in built}] == [("a", 4), ("b", 8), ("c", 12)]


def test_the_largest_stack_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, built = network(dense)
    sizes: list[int] = []
    concatenate = keras.ops.concatenate
    monkeypatch.setattr(
        keras.ops, "concatenate", lambda *a, **k: sizes.append((stack := concatenate(*a, **k)).numpy().nbytes) or stack
    )
    variants.run(flat, built, np.zeros((2, *SHAPE), "float32"))
    largest = 12 * 12 * 32 * 4 * 4  # pixels, channels of the last concatenation, the network and three variants, bytes
    assert variants.bytes_per_image(flat, list(built)) == largest
    assert max(sizes) <= 2 * largest


def two_residuals(x: Any) -> Any:
    y = layers.ReLU()(conv("a")(x))
    x = layers.Add(name="first")([conv("b")(y), x])
    z = layers.ReLU()(layers.BatchNormalization()(conv("c")(layers.ReLU()(x))))
    return conv("e")(layers.ReLU()(x + conv("d")(z)))


def test_variants_of_one_layer_and_of_residual_blocks_are_the_swapped_networks() -> None:
    flat, _ = network(two_residuals)
    designs = [blocks.get(name) for name in ("decoupled_r1", "decoupled_r2", "merge", "drop")]
    tasks = enumerate_tasks(flat, *designs, include_unprofitable=True)
    chosen = [task for task in tasks if task.layer.name not in ("b", "c", "d") and task.design != "decoupled_r2"]
    chosen += [task for task in tasks if task.key == ("a", "decoupled_r2")]
    assert {task.design for task in chosen} == {design.name for design in designs}
    assert len([task for task in chosen if task.layer.kind == RESIDUAL]) == 4
    built = {task.key: blocks.build_block(blocks.get(task.design), task.layer, seed=4) for task in chosen}
    images = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype("float32")
    unchanged, *others = variants.run(flat, built, images)
    np.testing.assert_allclose(unchanged, flat(images, training=False), rtol=1e-5, atol=1e-6)
    for outputs, (key, block) in zip(others, built.items(), strict=True):
        alone = graph.swap(flat, {key.layer: block})(images, training=False)
        np.testing.assert_allclose(outputs, alone, rtol=1e-5, atol=1e-6, err_msg=str(key))
        assert np.abs(alone - unchanged).max() > 1e-4, key
