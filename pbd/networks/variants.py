"""Run a network and variants of it in one pass, each variant with one layer replaced by a block.

Values are stacked along the batch axis: first those of the unchanged network, then those of every variant whose block
comes earlier in the graph. A variant differs from the network only after its block, so each layer runs once, on as
many images as can differ there, and computes what the variants have in common only once. The graph is as large as the
network, whatever the number of variants.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from pbd.networks import graph, residuals
from pbd.networks.cost import layer_calls
from pbd.networks.keras_internals import Call, producer, walk
from pbd.records import BlockKey

VALUE_BYTES = 4
"""Bytes of a value; activations are float32."""


@dataclass(frozen=True, eq=False)
class _Stack:
    """Values of the network and, after them along the batch axis, those of some variants.

    Example:
        For a batch of n images and the variants (a, b), `values` has shape (3 n, ...): n images of the network, n of
        variant a, n of variant b.
    """

    values: Any
    variants: tuple[BlockKey, ...]

    def of_network(self) -> Any:
        """Return the values of the unchanged network."""
        return keras.ops.split(self.values, 1 + len(self.variants), axis=0)[0] if self.variants else self.values

    def of(self, variants: tuple[BlockKey, ...]) -> Any:
        """Return the values of the network and of these variants, in this order.

        A variant that is not in the stack has the network's values here: its block does not precede them.

        Args:
            variants: all variants of the stack, and any others.
        """
        if variants == self.variants:
            return self.values
        missing = variants[len(self.variants) :]
        if variants[: len(self.variants)] == self.variants:  # the usual case: nothing needs to be taken apart
            return keras.ops.concatenate([self.values, *[self.of_network()] * len(missing)], axis=0)
        # Branches of the graph join here, and their stacks contain different variants, or another order of them.
        network, *parts = keras.ops.split(self.values, 1 + len(self.variants), axis=0)
        by_variant = dict(zip(self.variants, parts, strict=True))
        return keras.ops.concatenate([network, *(by_variant.get(key, network) for key in variants)], axis=0)


def run(model: keras.Model, built: Mapping[BlockKey, keras.Model], images: Any) -> list[Any]:
    """Return the outputs of the network in inference mode, then those of each variant, in the order of `built`.

    Args:
        model: flat and functional; the output for an image must not depend on other images of the batch.
        built: the block of each variant; several may replace the same layer.
        images: (images, height, width, channels).
    """
    of_layer, sources = _by_layer(built), residuals.block_sources(model, (key.layer for key in built))
    at_source, needed = {producer(model.inputs[0])[0].name: images}, set(sources.values())

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        stacks, variants = _stacks(args, kwargs)
        plain_args, plain_kwargs = _replace_stacks(args, kwargs, lambda stack: stack.of(variants))
        outputs = operation(*plain_args, **graph.in_mode(operation, False, plain_kwargs))
        if operation.name in needed:
            at_source[operation.name] = _Stack(outputs, variants).of_network()
        new = of_layer.get(operation.name)
        if new is None:
            return keras.tree.map_structure(lambda values: _Stack(values, variants), outputs)
        # New variants begin here: their blocks run on the network's values only.
        source = sources.get(operation.name)
        block_inputs = stacks[0].of_network() if source is None else at_source[source]
        block_outputs = [built[key](block_inputs, training=False) for key in new]
        return _Stack(keras.ops.concatenate([outputs, *block_outputs], axis=0), (*variants, *new))

    last = _walk(model, _Stack(images, ()), call)
    return keras.ops.split(last.of(tuple(built)), 1 + len(built), axis=0)


def _by_layer(keys: Iterable[BlockKey]) -> dict[str, tuple[BlockKey, ...]]:
    """Return the variants that begin at each layer, in their order."""
    of_layer: dict[str, tuple[BlockKey, ...]] = {}
    for key in keys:
        of_layer[key.layer] = (*of_layer.get(key.layer, ()), key)
    return of_layer


def bytes_per_image(model: keras.Model, keys: Iterable[BlockKey]) -> int:
    """Return the size of the largest stack that `run` creates, per image, in bytes.

    Args:
        model: flat and functional.
        keys: the keys of the variants.
    """
    of_layer = _by_layer(keys)
    largest, calls = 0, {operation.name: count for operation, count in layer_calls(model)}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal largest
        _, variants = _stacks(args, kwargs)
        plain_args, plain_kwargs = _replace_stacks(args, kwargs, lambda stack: stack.values)
        # Only shapes matter, so the model's own symbolic outputs serve where there is one call.
        outputs = operation.output if calls.get(operation.name, 1) == 1 else operation(*plain_args, **plain_kwargs)
        variants = (*variants, *of_layer.get(operation.name, ()))
        sizes = [math.prod(output.shape[1:]) for output in keras.tree.flatten(outputs)]
        largest = max(largest, VALUE_BYTES * (1 + len(variants)) * max(sizes))
        return keras.tree.map_structure(lambda output: _Stack(output, variants), outputs)

    _walk(model, _Stack(model.inputs[0], ()), call)
    return largest


def _walk(model: keras.Model, images: _Stack, call: Call) -> _Stack:
    return keras.tree.flatten(walk(model, images, call))[0]


def _stacks(args: Any, kwargs: Any) -> tuple[list[_Stack], tuple[BlockKey, ...]]:
    """Return the stacks among an operation's arguments, and the union of their variants.

    The variants of the longest stack come first, in its order, so that the largest stack need not be rearranged.
    """
    stacks = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, _Stack)]
    longest_first = sorted(stacks, key=lambda stack: -len(stack.variants))
    return stacks, tuple(dict.fromkeys(key for stack in longest_first for key in stack.variants))


def _replace_stacks(args: Any, kwargs: Any, values_of: Callable[[_Stack], Any]) -> tuple[Any, Any]:
    return keras.tree.map_structure(lambda x: values_of(x) if isinstance(x, _Stack) else x, (args, kwargs))
