"""Groups of layers that share channels: a channel that is removed from one of them is removed from all."""

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np

from pbd.networks.channels import kernels
from pbd.networks.channels.tracing import Trace, trace


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that share channels, directly (both outputs are added) or through other layers of the group."""

    name: str
    """The first producer."""
    producers: tuple[str, ...]
    """The layers whose filters make these channels, in graph order."""
    readers: tuple[str, ...]
    """The layers whose kernels read any of them, in graph order."""
    size: int
    """The number of channels that can be removed one by one."""
    fixed: str | None
    """Why no channel can be removed; `None` if channels can."""


def find_groups(model: keras.Model) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels that convolutions and dense layers make, in graph order.

    Channels that an unknown operation or a grouped convolution makes are in no group; none of them can be removed.

    Args:
        model: flat and functional.
    """
    traced = trace(model)
    return tuple(group for group, _ in with_classes(traced))


def reader_of(model: keras.Model) -> Mapping[str, str]:
    """Return, by the name of a convolution, the one layer that reads its output channels.

    The convolution must be the only producer of its channels, the reader must be their only reader and must read
    no others, and it must be possible to remove channels. If the reader is a convolution, each channel must be one of
    its inputs: behind `Concatenate()([x, x])` or two depthwise filters per channel, a channel that is not read from one
    of its two inputs is still read from the other. For example, the second convolution of a residual block reads the
    output of the first, and the classifier reads that of the last layer of a VGG.

    Args:
        model: flat and functional.
    """
    return {name: reader for name, (reader, _) in _read_by_one(trace(model)).items()}


def up_to_reader(model: keras.Model) -> Mapping[str, tuple[str, ...]]:
    """Return, by the name of a convolution, the layers before its only reader that lose what it loses, and that reader.

    They are those that compute each channel alone and have weights for each, such as a normalisation.

    Args:
        model: see `reader_of`.
    """
    traced = trace(model)
    calls = [call for call in traced.calls if call.inputs and kernels.is_per_channel(call)]

    def before(classes: set[int]) -> dict[str, None]:
        return dict.fromkeys(c.operation.name for c in calls if classes.issuperset(traced.of(c.input).tolist()))

    return {name: (*before(classes), reader) for name, (reader, classes) in _read_by_one(traced).items()}


def _read_by_one(traced: Trace) -> dict[str, tuple[str, set[int]]]:
    """Return, by the name of a convolution, its only reader (see `reader_of`) and the classes of its channels."""
    read = {call.operation.name: traced.of(call.input).tolist() for call in traced.readers()}
    convolutions = {layer.name for layer in traced.model.layers if isinstance(layer, keras.layers.Conv2D)}
    return {
        group.name: (group.readers[0], set(classes))
        for group, classes in with_classes(traced)
        if len(group.producers) == len(group.readers) == 1 and not group.fixed
        if group.name in convolutions and set(read[group.readers[0]]) == set(classes)
        if len(read[group.readers[0]]) == len(classes) or group.readers[0] not in convolutions
    }


def with_classes(traced: Trace) -> list[tuple[ChannelGroup, list[int]]]:
    """Return the groups in graph order, each with its classes in the order of their creation.

    A class is a set of channels that can only be removed together.
    """
    group_of = _connected([of_operation for _, of_operation in traced.created])
    members: dict[int, list[int]] = {}
    for channel_class in sorted(group_of):
        members.setdefault(group_of[channel_class], []).append(channel_class)
    producers, readers = dict[int, list[str]](), dict[int, list[str]]()
    for operation, classes in traced.created:
        if type(operation) in kernels.WIDTH:
            producers.setdefault(group_of[int(classes[0])], []).append(operation.name)
    for call in traced.readers():
        for number in {group_of[channel_class] for channel_class in traced.of(call.input).tolist()}:
            readers.setdefault(number, []).append(call.operation.name)
    return [
        (_group(names, readers.get(number, []), members[number], traced), members[number])
        for number, names in producers.items()
    ]


def _group(producers: list[str], readers: list[str], classes: list[int], traced: Trace) -> ChannelGroup:
    reasons = [traced.reasons[channel_class] for channel_class in classes if channel_class in traced.reasons]
    fixed = reasons[0] if reasons else ("it is the only one" if len(classes) == 1 else None)
    return ChannelGroup(producers[0], tuple(producers), tuple(dict.fromkeys(readers)), len(classes), fixed)


def _connected(sets: list[np.ndarray]) -> dict[int, int]:
    """Return, by element, a number that two elements have in common if a chain of overlapping sets connects them."""
    number_of: dict[int, int] = {}
    members: dict[int, set[int]] = {}
    for number, elements in enumerate(sets):
        merged = set(elements.tolist())
        for old in {number_of[channel_class] for channel_class in merged if channel_class in number_of}:
            merged |= members.pop(old)
        members[number] = merged
        number_of.update(dict.fromkeys(merged, number))
    return number_of
