"""Residual blocks: which parts of a network they are, and which parts are none."""

from collections.abc import Callable
from typing import Any

import keras
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.networks.residuals import find_residuals
from pbd.records import RESIDUAL

L = keras.layers


def conv(name: str, **settings: Any) -> keras.Layer:
    return L.Conv2D(8, 3, padding="same", name=name, **settings)


def network(body: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input((8, 8, 8))
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(body(inputs))))


def identity(x: Any) -> Any:
    return L.Add(name="sum")([conv("b")(L.ReLU()(conv("a")(x))), x])


def operation(x: Any) -> Any:
    """The addition is an operation, and the shortcut comes first."""
    x = L.ReLU()(x)
    return x + conv("b")(conv("a")(x))


def projection(x: Any) -> Any:
    x = conv("stem")(x)
    return L.Add(name="sum")([conv("b")(conv("a", strides=2)(x)), L.Conv2D(8, 1, strides=2, name="shortcut")(x)])


def nested(x: Any) -> Any:
    inner = conv("a")(x)
    inner = L.Add(name="inner")([conv("b")(inner), inner])
    return L.Add(name="outer")([conv("c")(inner), x])


def leaking(x: Any) -> Any:
    """An inner tensor is used outside."""
    y = conv("a")(x)
    return L.Concatenate()([L.Add(name="sum")([conv("b")(y), x]), y])


def shared(x: Any) -> Any:
    """A layer of the branch is called twice."""
    layer = conv("a")
    return L.Add(name="sum")([layer(layer(x)), x])


def used_again(x: Any) -> Any:
    """A layer of the branch also runs elsewhere."""
    layer = conv("a")
    x = L.Add(name="sum")([conv("b")(layer(x)), x])
    return layer(x)


def doubled(x: Any) -> Any:
    """Nothing is computed in between."""
    return L.Add(name="sum")([L.ReLU()(x), x])


def halves(x: Any) -> Any:
    """The branches start from different outputs of one operation."""
    first, second = keras.ops.split(x, 2, axis=-1)
    return L.Add(name="sum")([L.Conv2D(4, 3, padding="same", name="a")(first), second])


def three(x: Any) -> Any:
    return L.Add(name="sum")([conv("a")(x), conv("b")(x), x])


@pytest.mark.parametrize(
    ("body", "operations", "has_identity"),
    [
        (identity, ["a", "b"], True),
        (operation, ["a", "b"], True),
        (projection, ["a", "b", "shortcut"], False),
    ],
)
def test_a_residual_block_is_found(body: Callable[[Any], Any], operations: list[str], has_identity: bool) -> None:
    model = network(body)
    ((name, residual),) = find_residuals(model).items()
    assert name == residual.addition.name
    convolutions = [each for each in residual.operations if isinstance(each, L.Conv2D)]
    assert sorted(each.name for each in convolutions) == operations
    assert residual.has_identity is has_identity
    assert residual.params == sum(each.count_params() for each in convolutions)
    assert residual.input is (model.get_layer("stem").output if body is projection else residual.source.output)
    assert residual.addition.output.shape[-1] == 8
    if body is identity:
        assert residual.macs == 2 * 64 * 9 * 8 * 8


def test_nested_blocks_are_found_both() -> None:
    model = network(nested)
    found = find_residuals(model)
    assert list(found) == ["inner", "outer"]
    assert [each.name for each in found["inner"].operations] == ["b"]
    assert {each.name for each in found["outer"].operations} == {"a", "b", "inner", "c"}
    tasks = enumerate_tasks(model, blocks.get("decoupled_r1"), blocks.get("merge"), include_unprofitable=True)
    inside = {task.layer.name: task.layer.inside for task in tasks}
    assert inside == {
        "a": ("outer",),
        "b": ("inner", "outer"),
        "inner": ("outer",),
        "c": ("outer",),
        "outer": (),
    }
    assert [task.layer.name for task in tasks if task.layer.kind == RESIDUAL] == ["inner", "outer"]


def pooled(x: keras.KerasTensor) -> keras.KerasTensor:
    """The attention of CBAM: two branches of a feature map that end in vectors."""
    ends = [L.Dense(x.shape[-1])(pool()(x)) for pool in (L.GlobalAveragePooling2D, L.GlobalMaxPooling2D)]
    return L.Multiply()([x, L.Reshape((1, 1, x.shape[-1]))(L.Activation("sigmoid")(L.Add()(ends)))])


@pytest.mark.parametrize("body", [leaking, shared, used_again, doubled, halves, three, pooled])
def test_a_part_that_a_block_cannot_replace_is_not_found(body: Callable[[Any], Any]) -> None:
    assert find_residuals(network(body)) == {}


def test_designs_say_why_they_do_not_replace_a_block() -> None:
    def shrinking(x: keras.KerasTensor) -> keras.KerasTensor:
        return L.Add(name="sum")([L.Conv2D(x.shape[-1], 3, name="valid")(x), L.Cropping2D(1)(x)])

    for block, replaces in ((projection, ["merge"]), (shrinking, [])):
        tasks = enumerate_tasks(
            network(block), *map(blocks.get, ("decoupled_r1", "merge", "drop")), include_unprofitable=True
        )
        reasons = {task.design: task.skip_reason for task in tasks if task.layer.kind == RESIDUAL}
        assert [design for design, reason in reasons.items() if reason is None] == replaces
        assert "keeps the shape" in (reasons["drop"] or "")
    assert "no stride leads" in (reasons["merge"] or "")
