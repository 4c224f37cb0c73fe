"""Run a network and variants of it in one pass, each with one block in its layer's place.

Variants are stacked along the batch: a tensor holds the network's own values and, behind them, those of every variant
whose block came before it. So each layer runs once, on as many images as differ by then, and whatever a variant has in
common with the network is computed once. The graph is as large as the network, whatever the number of variants.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from pbd.networks import graph

VALUE_BYTES = 4


@dataclass(frozen=True, eq=False)
class _Stack:
    """Values of the network, (images, …), and behind them, along the first axis, those of the variants."""

    values: Any
    variants: tuple[str, ...]

    def own(self) -> Any:
        """Return the network's own values."""
        return keras.ops.split(self.values, 1 + len(self.variants), axis=0)[0] if self.variants else self.values

    def of(self, variants: tuple[str, ...]) -> Any:
        """Return the values of the network and of these variants: those that do not differ have the network's."""
        if variants == self.variants:
            return self.values
        missing = variants[len(self.variants) :]
        if variants[: len(self.variants)] == self.variants:
            return keras.ops.concatenate([self.values, *[self.own()] * len(missing)], axis=0)
        own, *parts = keras.ops.split(self.values, 1 + len(self.variants), axis=0)
        known = dict(zip(self.variants, parts, strict=True))
        return keras.ops.concatenate([own, *(known.get(name, own) for name in variants)], axis=0)


def run(model: keras.Model, built: Mapping[str, keras.Model], images: Any) -> list[Any]:
    """Return the network's outputs, and those of each variant, in the order of `built`.

    Args:
        model: flat and functional; it treats each image by itself.
        built: blocks by the layer whose place they take, in one variant each.
        images: (images, height, width, channels).
    """

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        stacks, variants = _stacks(args, kwargs)
        plain, named = _replaced(args, kwargs, lambda stack: stack.of(variants))
        outputs = operation(*plain, **named)
        if operation.name not in built:
            return keras.tree.map_structure(lambda values: _Stack(values, variants), outputs)
        other = built[operation.name](stacks[0].own())
        return _Stack(keras.ops.concatenate([outputs, other], axis=0), (*variants, operation.name))

    last = _walked(model, _Stack(images, ()), call)
    return keras.ops.split(last.of(tuple(built)), 1 + len(built), axis=0)


def bytes_per_image(model: keras.Model, names: Sequence[str]) -> int:
    """Return the bytes of the largest stack that `run` makes of an image, with a variant for each of these layers."""
    largest, calls = 0, {operation.name: count for operation, count in graph.layer_calls(model)}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal largest
        _, variants = _stacks(args, kwargs)
        plain, named = _replaced(args, kwargs, lambda stack: stack.values)
        outputs = operation.output if calls.get(operation.name, 1) == 1 else operation(*plain, **named)
        variants = (*variants, operation.name) if operation.name in names else variants
        sizes = [math.prod(output.shape[1:]) for output in keras.tree.flatten(outputs)]
        largest = max(largest, VALUE_BYTES * (1 + len(variants)) * max(sizes))
        return keras.tree.map_structure(lambda output: _Stack(output, variants), outputs)

    _walked(model, _Stack(model.inputs[0], ()), call)
    return largest


def _walked(model: keras.Model, images: _Stack, call: graph.Call) -> _Stack:
    return keras.tree.flatten(graph.walk(model, images, lambda operation: operation, call))[0]


def _stacks(args: Any, kwargs: Any) -> tuple[list[_Stack], tuple[str, ...]]:
    """Return an operation's stacks, and the variants that differ in any of them: the longest one's first."""
    stacks = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, _Stack)]
    by_length = sorted(stacks, key=lambda stack: -len(stack.variants))
    return stacks, tuple(dict.fromkeys(name for stack in by_length for name in stack.variants))


def _replaced(args: Any, kwargs: Any, values_of: Any) -> tuple[Any, Any]:
    return keras.tree.map_structure(lambda x: values_of(x) if isinstance(x, _Stack) else x, (args, kwargs))
