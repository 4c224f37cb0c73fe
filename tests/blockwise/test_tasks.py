"""Tasks: the facts of a layer, and which layers are skipped, chosen or excluded, and why."""

from typing import Any

import keras
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.errors import BadInputError, UsageError
from pbd.networks import graph
from pbd.networks.cost import count_macs
from tests.helpers.small_graphs import BLOCK, classifier, conv, reasons, residual

pytestmark = pytest.mark.usefixtures("fresh_names")


def test_a_task_says_what_its_layer_is() -> None:
    model = classifier(lambda x: conv("b", 4, activation="relu", strides=2)(conv("a", 8, kernel=1)(x)))
    (task,) = enumerate_tasks(graph.flatten(model), blocks.get(BLOCK), include_unprofitable=True)
    assert (task.layer.kernel_size, task.layer.strides, task.layer.dilation_rate) == ((3, 3), (2, 2), (1, 1))
    assert (task.layer.padding, task.layer.activation) == ("same", "relu")
    assert task.layer.macs == 6 * 6 * 9 * 8 * 4
    assert task.layer.prefix_macs == 12 * 12 * 8 * 8 + task.layer.macs
    assert task.macs == 6 * 6 * (9 * 8 + 8 * 4 + 9 * 4 + 4 * 4)


def test_the_macs_up_to_a_layer_are_those_of_the_network_that_ends_there() -> None:
    def body(x: Any) -> Any:
        shared = conv("shared", 8)
        return residual(shared(shared(x)))

    flat = graph.flatten(classifier(body))
    tasks = enumerate_tasks(flat, blocks.get(BLOCK), blocks.get("merge"), include_unprofitable=True)
    assert {"shared", "a1", "a2", "b1"} < {task.layer.name for task in tasks}, "and a sum"
    for task in tasks:
        ended = keras.Model(flat.inputs[0], flat.get_layer(task.layer.name).output)
        assert task.layer.prefix_macs == count_macs(ended)


def test_channels_first_and_unequal_strides_are_skipped_by_name() -> None:
    def body(x: Any) -> Any:
        y = conv("first", data_format="channels_first", padding="valid")(keras.layers.Permute((3, 1, 2))(x))
        return conv("last")(conv("uneven", strides=(2, 1))(keras.layers.Permute((2, 3, 1))(y)))

    skip_reasons = reasons(graph.flatten(classifier(body)))
    assert skip_reasons["first"] == "channels_first: convert the model to channels_last"
    assert skip_reasons["uneven"] is not None
    assert "strides (2, 1) differ" in skip_reasons["uneven"]
    assert skip_reasons["last"] is None


class Standardised(keras.layers.Conv2D):
    """Computes something else with its kernel than a convolution."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) / keras.ops.std(self.kernel)


def test_a_subclass_of_a_convolution_is_skipped() -> None:
    flat = graph.flatten(classifier(lambda x: conv("plain")(Standardised(8, 3, padding="same", name="special")(x))))
    assert reasons(flat) == {
        "special": "Standardised: a subclass of Conv2D may compute something else",
        "plain": None,
    }


def test_a_layer_whose_activation_has_weights_is_skipped() -> None:
    slopes = keras.layers.PReLU(shared_axes=[1, 2])
    model = classifier(lambda x: conv("plain")(keras.layers.Conv2D(8, 3, activation=slopes, name="special")(x)))
    reason = "its activation has weights: make the activation a layer behind the convolution"
    assert reasons(graph.flatten(model)) == {"special": reason, "plain": None}


def test_an_unprofitable_layer_is_skipped_unless_included() -> None:
    flat = graph.flatten(classifier(lambda x: conv("body")(conv("stem")(x[..., :1]))))
    skip_reasons = reasons(flat)
    assert skip_reasons["stem"] == "its block costs 61,200 multiply-accumulates, the layer 20,736"
    assert skip_reasons["body"] is None
    assert reasons(flat, include_unprofitable=True) == {"stem": None, "body": None}
    with pytest.raises(BadInputError, match=r"no convolution is left to replace\. First reason: stem: its block"):
        enumerate_tasks(flat, blocks.get(BLOCK), patterns=("stem",))


def test_the_reason_of_a_refusal_is_that_of_a_layer_that_was_asked_for() -> None:
    flat = graph.flatten(classifier(lambda x: conv("body")(conv("stem")(conv("first")(x)[..., :1]))))
    with pytest.raises(BadInputError, match="First reason: stem: its block"):
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
