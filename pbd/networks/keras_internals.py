"""The graph of a functional Keras model, through private attributes of Keras.

Keras has no public way to run a graph on other values than Keras tensors, or to ask which call made a tensor. No other
module of pbd reads these attributes. `tests/networks/test_keras_internals.py` states what is expected of them, so that
a new version of Keras fails there first.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
"""The names that Keras gives to kernels of layers."""
Call = Callable[..., Any]
"""Applies an operation: `call(operation, *args, **kwargs)`."""


def is_functional(model: keras.Model) -> bool:
    """Return whether the model has a graph of operations."""
    return hasattr(model, "_run_through_graph")


def _itself(operation: Any) -> Any:
    return operation


def walk(model: keras.Model, inputs: Any, call: Call, operation_for: Callable[[Any], Any] = _itself) -> Any:
    """Run the graph of a functional model, operation by operation, on any values.

    Args:
        model: functional.
        inputs: values in the structure of the model's inputs: tensors, or any objects that `call` understands.
        call: applies an operation. It runs once for each call in the graph, after the calls that compute its inputs;
            the tensors among the arguments are replaced by the values that `call` returned for them.
        operation_for: maps each operation of the graph to the one that is passed to `call`; by default itself.

    Returns:
        The values in the place of the model's outputs, in their structure.
    """
    return model._run_through_graph(inputs, operation_fn=operation_for, call_fn=call)


def calls(model: keras.Model) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Yield each call in a functional model's graph, in order: the operation, its input and its output tensors."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node.operation, node.input_tensors, node.outputs


def set_weights(layer: keras.Layer, values: list[Any]) -> None:
    """Set the weights of a layer, and what a `Normalization` in it computes from its weights."""
    layer.set_weights(values)
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def positional(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the first one by position: there it is found in flat networks."""
    name = None if args else next(iter(inspect.signature(operation.call).parameters), None)
    if name not in kwargs:
        return args, kwargs
    return (kwargs[name],), {other: value for other, value in kwargs.items() if other != name}


def call_counts(model: keras.Model) -> dict[int, int]:
    """Return how often a functional model calls each of its operations, by the operation's `id`.

    Calls of a shared layer that belong to other models are not counted.
    """
    counts: dict[int, int] = {}
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            counts[id(node.operation)] = counts.get(id(node.operation), 0) + 1
    return counts


def producer(tensor: Any) -> tuple[Any, int]:
    """Return the operation that computes a Keras tensor, and which of the operation's calls does, from 0."""
    history = tensor._keras_history
    return history.operation, history.node_index


def call_inputs(operation: Any, call_index: int) -> list[Any]:
    """Return the input tensors of one call of an operation, from 0.

    Unlike `operation.input`, which Keras refuses for a layer with several calls.
    """
    return operation._inbound_nodes[call_index].input_tensors
