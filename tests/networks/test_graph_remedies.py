"""Refusals of networks, of their layers and of latency measurements: each remedy is followed, and works."""

from collections.abc import Callable
from typing import Any

import keras
import pytest

import pbd
from pbd import blocks, run
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks import files, graph
from tests.helpers.remedies import in_message, refusal

L = keras.layers
SHAPE = (8, 8, 3)


def classifier(*convolutions: keras.Layer, outputs: int = 3) -> keras.Model:
    inputs = x = keras.Input(SHAPE)
    for layer in convolutions:
        x = layer(x)
    return keras.Model(inputs, L.Dense(outputs)(L.GlobalAveragePooling2D()(x)))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.pool, self.head = L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(self.pool(self.convolution(x)))


def branched() -> keras.Model:
    trunk = classifier(L.Conv2D(4, 3))
    return keras.Model(trunk.inputs, [trunk.output, L.Dense(2, name="other")(trunk.output)])


def rebuilt() -> keras.Model:
    model, inputs = Subclassed(), keras.Input(SHAPE)
    return keras.Model(inputs, model.head(model.pool(model.convolution(inputs))))


def cut_out() -> keras.Model:
    model = branched()
    return keras.Model(model.inputs, model.outputs[0])


Make = Callable[[], keras.Model]


@pytest.mark.parametrize(
    ("refused", "remedy", "followed"),
    [
        (Subclassed, "Rebuild it with keras.Model(inputs, outputs), from a keras.Input of known shape.", rebuilt),
        (branched, "Cut out the branch to compress.", cut_out),
    ],
)
def test_networks_are_rebuilt_with_one_input_and_one_output(refused: Make, remedy: str, followed: Make) -> None:
    refusal(lambda: graph.image_shape(refused()), remedy)
    assert graph.image_shape(followed()) == SHAPE


def test_images_are_resized_for_a_network() -> None:
    model = classifier(L.Conv2D(4, 3))
    refusal(lambda: graph.flatten(model, (16, 16, 3)), "Resize the images.")
    graph.flatten(model, SHAPE)


class Unregistered(L.Conv2D):
    """A layer that Keras cannot find by its name."""


@keras.saving.register_keras_serializable("test_graph_remedies")
class Registered(L.Conv2D):
    """The same layer, registered."""


def test_own_layers_are_registered_or_given_in_a_scope() -> None:
    def check(layer: Callable[..., keras.Layer]) -> None:
        files.check_known(classifier(layer(4, 3)))

    message = refusal(lambda: check(Unregistered), "or call pbd in a keras.saving.custom_object_scope")
    assert "@keras.saving.register_keras_serializable()" in message
    check(Registered)
    with keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        check(Unregistered)


def test_another_teacher_has_something_to_replace() -> None:
    design = blocks.get("two_layer")
    refusal(lambda: enumerate_tasks(classifier(L.Conv2D(4, 1)), design), "Give another teacher")
    assert enumerate_tasks(classifier(L.Conv2D(4, 3)), design, include_unprofitable=True)


@pytest.mark.parametrize(
    ("patterns", "corrected", "trained"), [(["conv_aa"], ["conv_a"], "conv_a"), (["^conv_aa"], ["^conv_a"], "conv_b")]
)
def test_the_layer_that_is_meant_is_named(patterns: list[str], corrected: list[str], trained: str) -> None:
    model = classifier(L.Conv2D(4, 3, name="conv_a"), L.Conv2D(4, 3, name="conv_b"))

    def tasks(*patterns: str) -> list[str]:
        found = enumerate_tasks(model, blocks.get("two_layer"), patterns=patterns, include_unprofitable=True)
        return [task.layer.name for task in found if task.skip_reason is None]

    assert in_message(r"Did you mean '(.*)'\?", refusal(lambda: tasks(*patterns))) == corrected[0]
    assert tasks(*corrected) == [trained]


@pytest.mark.parametrize(
    ("flags", "followed"),
    [
        (["--layers", "^conv"], ["--layers", "conv", "--include-unprofitable"]),
        (["--block", "decoupled_r2"], ["--block", "decoupled_r2", "--include-unprofitable"]),
    ],
)
def test_layers_are_selected_with_the_flags_that_are_named(flags: list[str], followed: list[str]) -> None:
    model = classifier(L.Conv2D(4, 3, name="conv"))

    def tasks(flags: list[str]) -> Any:
        chosen = run.parse(flags).blocks
        return enumerate_tasks(
            model,
            *map(blocks.get, chosen.designs),
            patterns=chosen.layers,
            include_unprofitable=chosen.include_unprofitable,
        )

    refusal(lambda: tasks(flags), "First reason: conv: ", "See --layers and --include-unprofitable.")
    assert [task.skip_reason for task in tasks(followed)] == [None]


def sequential(*shape: int | None) -> keras.Model:
    return keras.Sequential([keras.Input(shape), L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(2)])


def without_classifier() -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 3)])


Models = Callable[[], dict[str, keras.Model]]


@pytest.mark.parametrize(
    ("refused", "settings", "remedy", "followed", "then"),
    [
        (dict, {}, "Give them.", lambda: {"a": sequential(*SHAPE)}, {}),
        (lambda: {"a": sequential(*SHAPE)}, {"batch_sizes": [0]}, "at least 1", lambda: {"a": sequential(*SHAPE)}, {}),
        (
            lambda: {"a": sequential(*SHAPE), "b": sequential(9, 9, 3)},
            {},
            "one keras.Input of the same shape.",
            lambda: {"a": sequential(*SHAPE), "b": sequential(*SHAPE)},
            {},
        ),
        (
            lambda: {"a": sequential(None, None, 3)},
            {},
            "one keras.Input of the same shape.",
            lambda: {"a": sequential(*SHAPE)},
            {},
        ),
        (
            lambda: {"a": sequential(*SHAPE)},
            {"targets": ["kears"]},
            "Did you mean 'keras'?",
            lambda: {"a": sequential(*SHAPE)},
            {"targets": ["keras"]},
        ),
    ],
)
def test_remedies_for_latencies_work(
    refused: Models, settings: dict[str, Any], remedy: str, followed: Models, then: dict[str, Any]
) -> None:
    common = {"batch_sizes": [1], "targets": ["keras"]}
    refusal(lambda: pbd.measure_latency(refused(), **common | settings), remedy)
    assert pbd.measure_latency(followed(), **common | then)
