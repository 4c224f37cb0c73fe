"""The positions of a group's channels in the outputs and inputs of layers, and in tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.networks.channels import groups, kernels
from pbd.networks.channels.identities import Call, Channels
from pbd.networks.channels.tracing import Trace, trace


@dataclass(frozen=True, eq=False)
class Placement:
    """Channels of one group at one call of a layer."""

    call: int
    """The number of the call, from 0, in the order of `keras_internals.walk`."""
    layer: Any
    group: str
    axis: int
    """The axis of the channels in the tensor, counted from 0."""
    width: int
    """The number of channels in the tensor."""
    positions: np.ndarray
    """Positions of the group's channels in the tensor."""
    channels: np.ndarray
    """The channel of the group at each of these positions."""


@dataclass(frozen=True, eq=False)
class Placements:
    """The places of all channels that are in a group."""

    producers: tuple[Placement, ...]
    """Placements in the outputs of the layers that make them, each layer once."""
    normalisations: tuple[Placement, ...]
    """Placements in the inputs of batch normalisations."""
    readers: tuple[Placement, ...]
    """Placements in the inputs of the layers whose kernels read them."""
    tensors: tuple[Mapping[str, np.ndarray], ...]
    """By group, the channels of each tensor that has none but those of groups."""


def find_placements(model: keras.Model) -> Placements:
    """Return where the channels of the groups of `find_groups` lie.

    Args:
        model: flat and functional.
    """
    finder = _Finder(trace(model))
    producers, normalisations, readers = dict[int, list[Placement]](), list[Placement](), list[Placement]()
    for number, call in enumerate(finder.traced.calls):
        if type(call.operation) in kernels.WIDTH:
            readers += finder.placements(number, call, call.input)
            producers.setdefault(id(call.operation), [*finder.placements(number, call, call.outputs[0])])
        elif isinstance(call.operation, keras.layers.BatchNormalization):
            normalisations += finder.placements(number, call, call.input)
    first = tuple(placement for each in producers.values() for placement in each)
    return Placements(first, tuple(normalisations), tuple(readers), tuple(finder.tensors()))


class _Finder:
    """Finds the channels of groups in tensors."""

    def __init__(self, traced: Trace) -> None:
        self.traced = traced
        self._members = {
            channel_class: (group.name, index)
            for group, classes in groups.with_classes(traced)
            for index, channel_class in enumerate(classes)
        }

    def placements(self, number: int, call: Call, channels: Channels) -> Iterator[Placement]:
        """Yield the placements, one for each group, in the input or the output of a call."""
        classes = self.traced.of(channels)
        for group, (positions, of_group) in self._by_group(classes).items():
            yield Placement(number, call.operation, group, channels.axis, len(classes), positions, of_group)

    def tensors(self) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the channels, by group, of each tensor whose channels are all in groups."""
        for channels in self.traced.tensors():
            by_group = self._by_group(self.traced.of(channels))
            if sum(len(positions) for positions, _ in by_group.values()) == len(channels.ids):
                yield {group: np.unique(of_group) for group, (_, of_group) in by_group.items()}

    def _by_group(self, classes: np.ndarray) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Return, by group, the positions of its channels and which ones they are."""
        places: dict[str, tuple[list[int], list[int]]] = {}
        for position, channel_class in enumerate(classes.tolist()):
            if channel_class in self._members:
                group, index = self._members[channel_class]
                positions, channels = places.setdefault(group, ([], []))
                positions.append(position)
                channels.append(index)
        return {group: (np.array(positions), np.array(channels)) for group, (positions, channels) in places.items()}
