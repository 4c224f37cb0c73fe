"""Trace the channels of a network from the layers that make them to the layers that read them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.networks import keras_internals
from pbd.networks.channels import kernels, rules
from pbd.networks.channels.identities import Call, Channels, Identities

_RESHAPING = (keras.layers.Reshape, keras.layers.ZeroPadding2D)
"""The layers without weights whose settings may depend on the number of channels."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The channels of a model. Channels of one class can only be removed together."""

    model: keras.Model
    calls: tuple[Call, ...]
    """The calls in the order of `keras_internals.walk`."""
    inputs: Channels
    outputs: Channels
    classes: np.ndarray
    """The class of each identity: the smallest identity in it."""
    created: tuple[tuple[Any, np.ndarray], ...]
    """The operations that make channels, each with the classes of these."""
    reasons: Mapping[int, str]
    """Why the channels of a class cannot be removed, by class; other classes can be."""

    def of(self, channels: Channels) -> np.ndarray:
        """Return the class of each channel of a tensor."""
        return self.classes[channels.ids]

    def tensors(self) -> list[Channels]:
        """Return the channels of each tensor that has any."""
        channels = [self.inputs, *(output for call in self.calls for output in call.outputs)]
        return [each for each in channels if len(each.ids)]

    def readers(self) -> list[Call]:
        """Return each call of a layer that makes channels from all its input channels."""
        makers = {id(operation) for operation, _ in self.created if type(operation) in kernels.WIDTH}
        return [call for call in self.calls if id(call.operation) in makers]


def trace(model: keras.Model, fix_ends: bool = True) -> Trace:
    """Return the channels of a model.

    Args:
        model: flat and functional, with one input and one output.
        fix_ends: whether the channels of the input and of the output must all remain.
    """
    tracer = _Tracer(model)
    ids, inputs = tracer.ids, tracer.source(model.inputs[0])
    outputs = keras.tree.flatten(keras_internals.walk(model, inputs, tracer.call))[0]
    if fix_ends:
        ids.fix(inputs.ids, "they are the network's input")
        ids.fix(outputs.ids, "they are the network's output")
    classes = ids.classes()
    created = tuple((operation, classes[of_operation]) for operation, of_operation in ids.created.values())
    return Trace(model, tuple(tracer.calls), inputs, outputs, classes, created, ids.reasons())


class _Tracer:
    """Applies the rules while `walk` runs over the graph."""

    def __init__(self, model: keras.Model) -> None:
        self.ids = Identities()
        self.calls: list[Call] = []
        self._tensors = (tuple(outputs) for _, _, outputs in keras_internals.calls(model))  # in the order of `walk`
        self._first: dict[int, Call] = {}

    def source(self, tensor: Any) -> Channels:
        """Return new channels along the last axis of a tensor, empty if its size is open or the axis is the batch."""
        axis = len(tensor.shape) - 1
        return Channels(tensor, axis, self.ids.make(tensor, (tensor.shape[axis] or 0) if axis > 0 else 0))

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> tuple[Channels, ...]:
        """Propagate channel identities through one operation."""
        leaves = keras.tree.flatten((args, kwargs))
        inputs = tuple(leaf for leaf in leaves if isinstance(leaf, Channels))
        constants = tuple(leaf for leaf in leaves if not isinstance(leaf, Channels | bool | None))
        call = Call(operation, inputs, constants, next(self._tensors))
        call = dataclasses.replace(call, outputs=self._outputs(call))
        self._unite_with_first(call)
        self.calls.append(call)
        return call.outputs

    def _outputs(self, call: Call) -> tuple[Channels, ...]:
        """Return the outputs' channels; those of an operation that may mix channels are new and cannot be removed."""
        if origin := rules.follow(self.ids, call):
            return (Channels(call.tensors[0], *origin),)
        outputs = tuple(self.source(tensor) for tensor in call.tensors)
        for channels in (*call.inputs, *outputs):
            self.ids.fix(channels.ids, f"{call.operation.name} ({type(call.operation).__name__}) may mix them")
        return outputs

    def _unite_with_first(self, call: Call) -> None:
        """Unite the input channels of all calls of a layer, since its settings and weights are the same at each."""
        first = self._first.setdefault(id(call.operation), call)
        if first is call or not (getattr(call.operation, "weights", None) or type(call.operation) in _RESHAPING):
            return
        for before, now in zip(first.inputs, call.inputs, strict=True):
            if len(before.ids) == len(now.ids):
                self.ids.unite(before.ids, now.ids)
            else:
                self.ids.fix(np.union1d(before.ids, now.ids), f"{call.operation.name} is called on several widths")
