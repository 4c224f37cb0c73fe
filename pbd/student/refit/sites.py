"""The convolutions of a student that are refitted, each with the feature map of the teacher that is its target."""

import collections
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from pbd.networks.keras_internals import call_counts, calls, producer
from pbd.networks.residuals import is_addition

_ELEMENTWISE = (keras.layers.ReLU, keras.layers.Activation)
"""Layers between the last convolution of a block and its output."""


@dataclass(frozen=True)
class Site:
    """A convolution of the student, and the feature map of the teacher to which it is fitted."""

    convolution: keras.layers.Conv2D
    """The convolution of the student."""
    target: Any
    """The operation of the teacher whose output is the target: a convolution, or the addition of a residual block."""
    normalisations: tuple[keras.layers.BatchNormalization, keras.layers.BatchNormalization] | None = None
    """The layers behind the target and behind the convolution."""
    shortcuts: tuple[Any, Any] | None = None
    """The tensors that are added to the output, in the teacher and in the student."""
    is_rectified: bool = False
    """Whether only the positive part of the output counts, with what is added to it."""


def find_sites(teacher: keras.Model, student: keras.Model, ends: Mapping[str, str]) -> list[Site]:
    """Return the convolutions to refit, in graph order: the last of each block, and the teacher's behind the first one.

    Args:
        teacher: flat and functional.
        student: the teacher with blocks in place of some layers and residual blocks.
        ends: by name of each replaced layer, the name of the layer whose output is that of its block.
    """
    graph, order = _Graph(student), [operation for operation, _, _ in calls(teacher)]
    counts = call_counts(teacher)
    sites = []
    first = next((position for position, each in enumerate(order) if each.name in ends), len(order))
    for operation in order[first:]:
        is_target = operation.name in ends or type(operation) is keras.layers.Conv2D
        if is_target and counts[id(operation)] == 1 and (site := _site(operation, teacher, graph, ends)):
            sites.append(site)
    return sites


def _site(target: Any, teacher: keras.Model, graph: "_Graph", ends: Mapping[str, str]) -> Site | None:
    kept = {each.name: inputs for each, inputs, _ in calls(teacher)}
    end = graph.operations.get(ends.get(target.name, target.name))
    convolution, activations = graph.last_convolution(end, kept.keys() - {target.name})
    if convolution is None:
        return None
    functions = {each for each in activations if each is not keras.activations.linear}
    if functions:
        return Site(convolution, target, is_rectified=functions == {keras.activations.relu})
    normalisation = graph.normalisation(end, kept)
    last: Any = end if normalisation is None else normalisation
    normalisations = None if normalisation is None else (teacher.get_layer(last.name), normalisation)
    addition, tensor = graph.shortcut(last, convolution, kept)
    if addition is None:
        return Site(convolution, target, normalisations, is_rectified=graph.is_rectified(last, kept))
    before = target if normalisations is None else normalisations[0]
    (other,) = (each for each in kept[addition.name] if producer(each)[0] is not before)
    return Site(convolution, target, normalisations, (other, tensor), graph.is_rectified(addition, kept))


class _Graph:
    """Answers questions about the graph of a student."""

    def __init__(self, model: keras.Model) -> None:
        self.operations: dict[str, Any] = {}
        self._inputs: dict[str, list[Any]] = {}
        self._readers: dict[str, list[Any]] = collections.defaultdict(list)
        self._counts = call_counts(model)
        for operation, inputs, _ in calls(model):
            self.operations[operation.name] = operation
            self._inputs[operation.name] = inputs
            for tensor in inputs:
                self._readers[producer(tensor)[0].name].append(operation)
        self._positions = {name: position for position, name in enumerate(self.operations)}

    def last_convolution(self, end: Any, other_layers: Container[str]) -> tuple[keras.layers.Conv2D | None, list[Any]]:
        """Return the convolution that computes the output of a block, and the activations behind it, its own included.

        None if something else computes the output, or a convolution that cannot be refitted.

        Args:
            end: the operation whose output is that of the block; None: there is none.
            other_layers: names of layers that do not belong to the block.
        """
        activations = []
        while isinstance(end, _ELEMENTWISE) and end.name not in other_layers:
            activations.append(_function(end))
            end = producer(self._inputs[end.name][0])[0]
        if end is None or end.name in other_layers or type(end) is not keras.layers.Conv2D:
            return None, []
        fits = end.groups == 1 and end.data_format == "channels_last" and self._counts[id(end)] == 1
        return (end, [*activations, end.activation]) if fits else (None, [])

    def only_reader(self, operation: Any) -> Any:
        """Return the only operation that reads the output of another one, or None."""
        readers = self._readers[operation.name]
        return readers[0] if len(readers) == 1 else None

    def is_rectified(self, operation: Any, kept: Container[str]) -> bool:
        """Return whether only a rectifier of the teacher reads an output."""
        reader = self.only_reader(operation)
        rectifies = isinstance(reader, _ELEMENTWISE) and _function(reader) is keras.activations.relu
        return rectifies and reader.name in kept

    def normalisation(self, end: Any, kept: Container[str]) -> keras.layers.BatchNormalization | None:
        """Return the teacher's batch normalisation of an output if it can have any scale and shift, or None."""
        reader = self.only_reader(end)
        if not isinstance(reader, keras.layers.BatchNormalization) or reader.name not in kept:
            return None
        return reader if reader.center and reader.scale and reader.axis in (-1, 3) else None

    def shortcut(self, last: Any, convolution: keras.layers.Conv2D, kept: Container[str]) -> tuple[Any, Any]:
        """Return the teacher's addition that reads an output, and the other tensor that it adds.

        None twice if there is no such addition of two feature maps of one size, or if a convolution behind this one has
        a part in the other one: that one is refitted later and makes up for the error of both.
        """
        addition = self.only_reader(last)
        if addition is None or addition.name not in kept or not is_addition(addition):
            return None, None
        terms = self._inputs[addition.name]
        others = [each for each in terms if producer(each)[0] is not last]
        if len(terms) != 2 or len(others) != 1 or others[0].shape != last.output.shape:
            return None, None
        (tensor,) = others
        position = self._positions[convolution.name]
        if any(self._positions[each.name] > position for each in self._convolutions_before(tensor)):
            return None, None
        return addition, tensor

    def _convolutions_before(self, tensor: Any) -> Iterator[Any]:
        open_tensors, seen = [tensor], set[str]()
        while open_tensors:
            operation = producer(open_tensors.pop())[0]
            if operation.name in seen:
                continue
            seen.add(operation.name)
            open_tensors += self._inputs.get(operation.name, [])
            if isinstance(operation, keras.layers.Conv2D):
                yield operation


def _function(layer: Any) -> Any:
    """Return what an elementwise layer computes; the layer itself if it is a ReLU with a slope or a limit."""
    if isinstance(layer, keras.layers.Activation):
        return layer.activation
    is_plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
    return keras.activations.relu if is_plain else layer
