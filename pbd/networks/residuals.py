"""The residual blocks of a network: parts between a tensor and an addition that joins the two branches from it."""

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from pbd.networks.cost import layer_macs
from pbd.networks.keras_internals import call_counts, calls, producer


@dataclass(frozen=True)
class Residual:
    """A part of a network from one tensor to one addition; nothing else uses what is computed in between."""

    addition: Any
    """The operation that joins the branches."""
    source: Any
    """The operation whose output both branches start from."""
    operations: tuple[Any, ...]
    """The operations of the branches, in graph order, without the addition."""
    has_identity: bool
    """Whether one of the branches is the tensor itself."""

    @property
    def input(self) -> Any:
        """The tensor that the branches start from."""
        return self.source.output

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return sum(layer_macs(each) for each in self.operations if isinstance(each, keras.Layer))

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(each.count_params() for each in self.operations if isinstance(each, keras.Layer))


def is_addition(operation: Any) -> bool:
    """Return whether an operation adds tensors: the layer, or the operation behind `+`."""
    return type(operation).__name__ == "Add"


def find_residuals(model: keras.Model) -> Mapping[str, Residual]:
    """Return the residual blocks of a flat functional model, by the names of their additions, in graph order.

    A block maps feature maps to feature maps, has two branches, is closed (its inner tensors are used in it alone),
    computes something, and none of its operations is called more than once.
    """
    graph, counts = list(calls(model)), call_counts(model)
    additions = [(operation, inputs) for operation, inputs, _ in graph if is_addition(operation) and len(inputs) == 2]
    candidates = [_residual(addition, inputs, graph) for addition, inputs in additions]
    return {
        residual.addition.name: residual
        for residual in candidates
        if residual is not None and residual.macs > 0
        if len(residual.input.shape) == len(residual.addition.output.shape) == 4
        if all(counts[id(each)] == 1 for each in (residual.addition, residual.source, *residual.operations))
    }


_Call = tuple[Any, list[Any], list[Any]]


def _residual(addition: Any, inputs: list[Any], graph: list[_Call]) -> Residual | None:
    """Return the block that an addition ends, or `None` if its branches do not start from one tensor."""
    by_operation = {id(operation): number for number, (operation, _, _) in enumerate(graph)}

    def ancestors(tensor: Any) -> dict[int, Any]:
        """Return the operations that a tensor depends on, by `id`, with the one that computes it."""
        operations, open_tensors = {}, [tensor]
        while open_tensors:
            operation = producer(open_tensors.pop())[0]
            if id(operation) not in operations:
                operations[id(operation)] = operation
                if id(operation) in by_operation:
                    open_tensors += graph[by_operation[id(operation)]][1]
        return operations

    first, second = ancestors(inputs[0]), ancestors(inputs[1])
    common = [operation for key, operation in first.items() if key in second]
    source = max(common, key=lambda operation: by_operation.get(id(operation), -1), default=None)
    if source is None or keras.tree.is_nested(source.output):  # of an operation with several outputs
        return None
    before = ancestors(source.output)
    inside = {key: operation for key, operation in (first | second).items() if key not in before}
    if not _is_closed(inside, source, addition, graph):
        return None
    ordered = tuple(operation for operation, _, _ in graph if id(operation) in inside)
    return Residual(addition, source, ordered, any(producer(tensor)[0] is source for tensor in inputs))


def _is_closed(inside: Mapping[int, Any], source: Any, addition: Any, graph: list[_Call]) -> bool:
    """Return whether operations read only the source and one another, and only they and the addition read them."""
    users = collections.defaultdict(set)
    for operation, inputs, _ in graph:
        for tensor in inputs:
            maker = producer(tensor)[0]
            users[id(maker)].add(id(operation))
            if id(operation) in inside and id(maker) not in inside and maker is not source:
                return False
    allowed = {*inside, id(addition)}
    return all(users[key] <= allowed for key in inside)


def block_sources(model: keras.Model, names: Iterable[str]) -> dict[str, str]:
    """Return, by name of each residual block among these layers, the operation whose output is the block's input."""
    blocks = find_residuals(model)
    return {name: blocks[name].source.name for name in names if name in blocks}
