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
from pbd.errors import BadInputError, UsageError
from pbd.networks import cost, graph
from pbd.records import BlockTask
from tests.helpers.swapping import swap_blocks

layers = keras.layers
SHAPE = (12, 12, 8)
BLOCK = "two_layer"


@pytest.fixture(autouse=True)
def _fresh_names() -> None:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)


def conv(name: str, filters: int = 16, kernel: Any = 3, padding: str = "same", **settings: Any) -> keras.Layer:
    return layers.Conv2D(filters, kernel, padding=padding, name=name, bias_initializer="normal", **settings)


def classifier(body: Callable[[Any], Any], shape: tuple[int, int, int] = SHAPE) -> keras.Model:
    """Return a model that classifies what `body` makes of its input; every weight of it is random."""
    inputs = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(body(inputs))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    generator = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def images(shape: tuple[int, int, int] = SHAPE, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *shape)).astype("float32")


def predict(model: keras.Model, batch: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(batch, training=False))


def difference(one: keras.Model, other: keras.Model, batch: np.ndarray | None = None) -> float:
    batch = images() if batch is None else batch
    expected = predict(one, batch)
    assert np.isfinite(expected).all()
    assert np.ptp(expected, axis=0).min() > 0
    return float(np.abs(expected - predict(other, batch)).max())


def reasons(model: keras.Model, **settings: Any) -> dict[str, str | None]:
    return {task.layer.name: task.skip_reason for task in enumerate_tasks(model, blocks.get(BLOCK), **settings)}


def swap_all(flat: keras.Model, tmp_path: Path) -> tuple[BlockTask, ...]:
    """Swap every layer that can be, check what must hold of any such network, and return the tasks."""
    tasks = enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True)
    chosen = [task for task in tasks if task.skip_reason is None]
    student = swap_blocks(flat, chosen, seed=1)
    replaced = {task.layer.name for task in chosen}
    for layer in flat.layers:
        if layer.name not in replaced:
            twin = student.get_layer(layer.name)
            assert twin is not layer
            assert twin.output.shape == layer.output.shape
            for ours, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    student.save(tmp_path / "student.keras")
    assert difference(student, keras.models.load_model(tmp_path / "student.keras")) == 0.0
    return tasks


def residual(x: Any) -> Any:
    y = layers.BatchNormalization()(conv("a1", 8)(x))
    y = conv("a2", 8)(layers.ReLU()(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = conv("b1", strides=2)(x)
    return layers.Add()([conv("short", kernel=1, strides=2)(x), y])


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


def test_a_task_says_what_its_layer_is() -> None:
    model = classifier(lambda x: conv("b", 4, activation="relu", strides=2)(conv("a", 8, kernel=1)(x)))
    (task,) = enumerate_tasks(graph.flatten(model), blocks.get(BLOCK), include_unprofitable=True)
    assert (task.layer.kernel_size, task.layer.strides, task.layer.dilation_rate) == ((3, 3), (2, 2), (1, 1))
    assert (task.layer.padding, task.layer.activation) == ("same", "relu")
    assert task.layer.macs == 6 * 6 * 9 * 8 * 4
    assert task.layer.prefix_macs == 12 * 12 * 8 * 8 + task.layer.macs
    assert task.macs == 6 * 6 * (9 * 8 + 8 * 4 + 9 * 4 + 4 * 4)


def test_changing_a_copy_leaves_the_teacher_alone() -> None:
    model = classifier(residual)
    before = [weight.copy() for weight in model.get_weights()]
    flat = graph.flatten(model)
    for copy in (flat, swap_blocks(flat, [])):
        copy.set_weights([weight + 1.0 for weight in copy.get_weights()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


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


def test_channels_first_and_unequal_strides_are_skipped_by_name() -> None:
    def body(x: Any) -> Any:
        y = conv("first", data_format="channels_first", padding="valid")(layers.Permute((3, 1, 2))(x))
        return conv("last")(conv("uneven", strides=(2, 1))(layers.Permute((2, 3, 1))(y)))

    skip_reasons = reasons(graph.flatten(classifier(body)))
    assert skip_reasons["first"] == "channels_first: convert the model to channels_last"
    assert skip_reasons["uneven"] is not None
    assert "strides (2, 1) differ" in skip_reasons["uneven"]
    assert skip_reasons["last"] is None


def test_an_unprofitable_layer_is_skipped_unless_included() -> None:
    flat = graph.flatten(classifier(lambda x: conv("body")(conv("stem")(x[..., :1]))))
    skip_reasons = reasons(flat)
    assert skip_reasons["stem"] == "its block costs 61,200 multiply-accumulates, the layer 20,736"
    assert skip_reasons["body"] is None
    assert reasons(flat, include_unprofitable=True) == {"stem": None, "body": None}
    with pytest.raises(BadInputError, match=r"no convolution is left to replace\. First reason: stem: its block"):
        enumerate_tasks(flat, blocks.get(BLOCK), patterns=("stem",))


@pytest.mark.parametrize(("channels", "kept"), [(7, False), (8, True)])
def test_a_layer_with_few_channels_is_skipped_unless_included(channels: int, kept: bool) -> None:
    """Its block has fewer multiply-accumulates, and would run no faster."""
    flat = graph.flatten(classifier(lambda x: conv("body")(conv("stem")(x)), shape=(12, 12, channels)))
    stem = enumerate_tasks(flat, blocks.get(BLOCK), include_unprofitable=True)[0]
    assert stem.macs < stem.layer.macs
    skip_reasons = reasons(flat)
    assert skip_reasons["body"] is None
    assert (skip_reasons["stem"] is None) is kept
    assert kept or str(skip_reasons["stem"]).startswith("input channels: 7")
    assert reasons(flat, include_unprofitable=True) == {"stem": None, "body": None}


def test_a_task_says_whether_its_layer_has_a_bias() -> None:
    flat = graph.flatten(classifier(lambda x: conv("b", use_bias=False)(conv("a")(x))))
    assert [task.layer.use_bias for task in enumerate_tasks(flat, blocks.get(BLOCK))] == [True, False]


def test_patterns_choose_and_exclude_layers() -> None:
    flat = graph.flatten(classifier(residual))
    excluded = "excluded by --layers"
    assert reasons(flat, patterns=("a*",)) == {"a1": None, "a2": None, "b1": excluded}
    assert reasons(flat, patterns=("^a1",)) == {"a1": excluded, "a2": None, "b1": None}
    assert reasons(flat, patterns=("a*", "^*2")) == {"a1": None, "a2": excluded, "b1": excluded}


def test_a_pattern_without_a_match_names_the_nearest_layer() -> None:
    flat = graph.flatten(classifier(residual))
    for pattern in ("a11", "^a11"):
        with pytest.raises(UsageError, match=r"unknown layer or pattern.*Did you mean '\^?a1'\?"):
            enumerate_tasks(flat, blocks.get(BLOCK), patterns=("b1", pattern))


def small_body(trainable: bool = True) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.BatchNormalization(name="norm")(conv("conv")(inputs))
    model = keras.Model(inputs, layers.ReLU(name="relu")(x), name="inner")
    model.trainable = trainable
    return model


def small_sequence() -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), conv("conv"), layers.BatchNormalization(name="norm")], name="inner")


@pytest.mark.parametrize("inner", [small_body, small_sequence])
@pytest.mark.parametrize("settings", [{}, {"training": False}])
def test_nested_models_are_unfolded_exactly(
    inner: Callable[[], keras.Model], settings: dict[str, bool], tmp_path: Path
) -> None:
    model = classifier(lambda x: conv("conv")(inner()(x, **settings)))
    flat = graph.flatten(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert difference(model, flat) == 0.0
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["conv", "net_conv"]


@pytest.mark.parametrize("inner", [small_body, small_sequence])
@pytest.mark.parametrize("settings", [{}, {"training": False}])
def test_a_nested_model_learns_as_it_did(inner: Callable[[], keras.Model], settings: dict[str, bool]) -> None:
    """In training, Keras overrules `training=False` of the call: what matters is that the copy does the same."""
    model = classifier(lambda x: inner()(x, **settings))
    flat = graph.flatten(model)
    one, other = (keras.ops.convert_to_numpy(m(images(), training=True)) for m in (model, flat))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        model.get_layer("inner").get_layer("norm").moving_mean, flat.get_layer("norm").moving_mean
    )
    assert not np.allclose(one, predict(model, images()))


def test_nested_models_with_the_same_names_at_every_depth() -> None:
    def outer(name: str) -> keras.Model:
        inputs = keras.Input(SHAPE)
        return keras.Model(inputs, conv("conv", 8)(layers.ReLU()(small_sequence()(inputs))), name=name)

    model = classifier(lambda x: conv("conv")(outer("three")(outer("two")(outer("one")(x)))))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert len(enumerate_tasks(flat, blocks.get(BLOCK))) == 7


def test_operations_with_the_same_name_in_a_nested_model(tmp_path: Path) -> None:
    inputs = keras.Input(SHAPE)
    keras.Model(inputs, conv("inner_conv")(inputs * 2.0), name="inner").save(tmp_path / "inner.keras")
    inner = keras.models.load_model(tmp_path / "inner.keras")
    keras.utils.clear_session()
    model = classifier(lambda x: inner(x * 3.0))
    assert difference(model, graph.flatten(model)) == 0.0


def test_a_nested_model_called_twice_is_one_set_of_weights() -> None:
    inputs = keras.Input(SHAPE)
    inner = keras.Model(inputs, conv("conv", 8)(inputs), name="inner")
    model = classifier(lambda x: conv("last")(inner(inner(x))))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert flat.count_params() == model.count_params()
    assert "called 2 times" in str(reasons(flat)["conv"])


def test_a_frozen_nested_model_computes_the_same() -> None:
    model = classifier(lambda x: small_body(trainable=False)(x))
    assert difference(model, graph.flatten(model)) == 0.0


def test_a_sequential_model_becomes_functional(tmp_path: Path) -> None:
    stack = [conv("a"), layers.MaxPooling2D(), conv("b", activation="relu"), layers.Flatten(), layers.Dense(5)]
    model = keras.Sequential([keras.Input(SHAPE), *stack])
    flat = graph.flatten(model)
    assert type(flat).__name__ == "Functional"
    assert difference(model, flat) == 0.0
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["a", "b"]


def test_free_sizes_are_fixed_by_the_images() -> None:
    model = classifier(lambda x: conv("c")(x), shape=(None, None, 8))
    flat = graph.flatten(model, SHAPE)
    assert flat.input_shape == (None, *SHAPE)
    assert difference(model, flat) == 0.0
    with pytest.raises(BadInputError, match=r"takes images of shape \(None, None, 8\)\. Received: \(12, 12, 3\)"):
        graph.flatten(model, (12, 12, 3))


class Subclassed(keras.Model):
    def call(self, x: Any) -> Any:
        return x


def test_what_cannot_be_compressed_is_refused_in_one_line() -> None:
    one, two = keras.Input(SHAPE), keras.Input(SHAPE)
    x = conv("c")(one)
    refused = {
        "2 inputs, 1 outputs": keras.Model([one, two], layers.Add()([x, conv("d")(two)])),
        "1 inputs, 2 outputs": keras.Model(one, [x, layers.ReLU()(x)]),
        "Received: Subclassed": Subclassed(),
        "Received: Sequential": keras.Sequential([conv("c")]),
    }
    for words, model in refused.items():
        with pytest.raises(BadInputError, match=words) as caught:
            graph.flatten(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="'net' with none") as caught:
        enumerate_tasks(graph.flatten(classifier(conv("c", kernel=1))), blocks.get(BLOCK))
    assert "\n" not in str(caught.value)


def test_a_mix_of_dictionary_and_list_outputs_is_read() -> None:
    inputs = keras.Input(SHAPE)
    scores = layers.Dense(5)(layers.GlobalAveragePooling2D()(conv("c")(inputs)))
    for outputs in ([scores], {"scores": scores}):
        flat = graph.flatten(keras.Model(inputs, outputs))
        assert flat.output.shape == (None, 5)
        assert predict(flat, images()).shape == (3, 5)


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


def test_run_trains_only_the_named_layers() -> None:
    flat = graph.flatten(classifier(residual))
    norm = next(layer for layer in flat.layers if isinstance(layer, layers.BatchNormalization))
    before = [weight.copy() for weight in norm.get_weights()]
    np.testing.assert_array_equal(graph.run(flat, images(), training=set()), predict(flat, images()))
    np.testing.assert_array_equal(before[2], norm.get_weights()[2])
    graph.run(flat, images(), training={norm.name})
    assert np.abs(before[2] - norm.get_weights()[2]).max() > 0


def test_an_adapted_normalization_keeps_its_statistics() -> None:
    normalise = keras.layers.Normalization()
    normalise.adapt(np.random.default_rng(0).normal(120, 60, (64, 8, 8, 3)))
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(normalise(inputs))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    assert np.abs(graph.flatten(model).predict(images, verbose=0) - expected).max() == 0.0


def dense_softmax(x: Any) -> Any:
    return layers.Dense(5, activation="softmax", name="head", bias_initializer="normal")(x)


def shared_softmax(x: Any) -> Any:
    """A softmax that attends over the channels before it ends the network."""
    softmax = layers.Activation("softmax", name="scores")
    return softmax(layers.Dense(5, name="head", bias_initializer="normal")(layers.Multiply()([x, softmax(x)])))


def plain_head(x: Any) -> Any:
    return layers.Dense(5, name="head", bias_initializer="normal")(x)


HEADS: dict[str, Callable[[Any], Any]] = {
    "in the dense layer": dense_softmax,
    "layer": lambda x: layers.Softmax(name="scores")(plain_head(x)),
    "activation layer": lambda x: layers.Activation("softmax", name="scores")(plain_head(x)),
    "operation": lambda x: keras.ops.softmax(plain_head(x)),
    "over a reshape": lambda x: layers.Activation("softmax")(layers.Reshape((5,))(plain_head(x))),
    "shared with an attention": shared_softmax,
}


def probabilistic(head: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(conv("b")(conv("a", activation="relu")(inputs)))
    return keras.Model(inputs, head(x), name="net")


@pytest.mark.parametrize("case", HEADS)
def test_logits_stop_before_the_softmax(case: str) -> None:
    flat = graph.flatten(probabilistic(HEADS[case]))
    before = graph.logits(flat)
    scores, probabilities = predict(before, images()), predict(flat, images())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert scores.shape == (3, 5)
    assert np.abs(scores.sum(axis=1) - 1.0).min() > 1e-3, "not normalised"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(keras.ops.softmax(scores)), probabilities, atol=1e-6)
    assert {layer.name for layer in before.layers} <= {layer.name for layer in flat.layers}
    assert all(flat.get_layer(layer.name) is layer for layer in before.layers), "on the same layers"


@pytest.mark.parametrize(
    "head", [plain_head, lambda x: layers.Dense(5, activation="elu")(x), lambda x: layers.LeakyReLU()(plain_head(x))]
)
def test_logits_of_a_network_without_softmax_are_its_outputs(head: Callable[[Any], Any]) -> None:
    flat = graph.flatten(probabilistic(head))
    assert difference(flat, graph.logits(flat)) == 0.0


@pytest.mark.parametrize("case", HEADS)
def test_a_softmax_stays_exact_through_surgery_and_files(case: str, tmp_path: Path) -> None:
    model = probabilistic(HEADS[case])
    before = predict(model, images())
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    np.testing.assert_array_equal(predict(model, images()), before)
    assert flat.count_params() == model.count_params()
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    assert difference(model, loaded) == 0.0
    assert difference(graph.logits(flat), graph.logits(loaded)) == 0.0
    assert difference(flat, graph.flatten(loaded)) == 0.0, "what is split stays as it is"
    assert [task.layer.name for task in swap_all(flat, tmp_path)] == ["a", "b"]


def test_a_nested_model_that_ends_in_softmax_is_split_too() -> None:
    inputs = keras.Input((16,))
    top = keras.Model(inputs, dense_softmax(layers.Dense(7, name="hidden")(inputs)), name="top")
    model = probabilistic(lambda x: top(x))
    flat = graph.flatten(model)
    assert difference(model, flat) == 0.0
    assert graph.logits(flat).layers[-1].name == "head"
    scores = keras.ops.softmax(predict(graph.logits(flat), images()))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(scores), predict(model, images()), atol=1e-6)


def test_a_softmax_in_the_middle_is_left_alone() -> None:
    flat = graph.flatten(probabilistic(lambda x: plain_head(layers.Dense(6, activation="softmax", name="gate")(x))))
    assert flat.get_layer("gate").activation is keras.activations.softmax
    assert difference(flat, graph.logits(flat)) == 0.0
