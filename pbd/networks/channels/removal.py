"""Remove channels: a plain network that has fewer of them."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from pbd.errors import UsageError
from pbd.networks.channels import groups, kernels
from pbd.networks.channels.rebuilding import rebuild
from pbd.networks.channels.tracing import Trace, trace


def remove(model: keras.Model, kept: Mapping[str, Sequence[int]]) -> keras.Model:
    """Return a copy of the model with fewer channels: it computes what `masked` computes, with smaller weights.

    It has the model's layers, under their names, and opens without custom objects if the model does.

    Args:
        model: flat and functional.
        kept: by the name of a group (see `find_groups`), the channels that remain, from 0; other groups keep all.

    Raises:
        UsageError: there is no such group or channel, the group's channels cannot be removed, or none would remain.

    Example:
        >>> remove(model, {"conv1": range(8)}).get_layer("conv1").filters
        8
    """
    traced = trace(model)
    return rebuild(traced, _remaining(traced, kept))


def masked(model: keras.Model, kept: Mapping[str, Sequence[int]]) -> keras.Model:
    """Return a copy of the model whose kernels are zero where they read a channel that is not kept.

    Args:
        model: flat and functional.
        kept: see `remove`.

    Raises:
        UsageError: see `remove`.
    """
    traced = trace(model)
    remaining = _remaining(traced, kept)
    copy = rebuild(traced, np.ones_like(remaining))
    for call in traced.readers():
        positions = np.flatnonzero(remaining[traced.of(call.input)])
        copy.get_layer(call.operation.name).set_weights(kernels.silence(call, positions))
    return copy


def _remaining(traced: Trace, kept: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Return whether the channels of each class remain."""
    by_name = {group.name: (group, classes) for group, classes in groups.with_classes(traced)}
    remaining = np.ones(len(traced.classes), bool)
    for name, channels in kept.items():
        if name not in by_name:
            raise UsageError(f"channels are kept by group. Received: {name!r}. Use a name that find_groups returns.")
        group, classes = by_name[name]
        _check(group, channels)
        remaining[classes] = False
        remaining[np.array(classes)[list(channels)]] = True
    for channels_of in traced.tensors():
        if not remaining[traced.of(channels_of)].any():
            name = channels_of.tensor.name
            raise UsageError(f"each tensor must keep a channel. Received: none for {name!r}. Keep one of its channels.")
    return remaining


def _check(group: groups.ChannelGroup, channels: Sequence[int]) -> None:
    if group.fixed:
        raise UsageError(
            f"a channel of a fixed group cannot be removed. Received: {group.name!r} ({group.fixed}). Leave it out."
        )
    if len(channels) == 0 or not set(channels) <= set(range(group.size)):
        raise UsageError(
            f"the kept channels of {group.name!r} must lie in 0..{group.size - 1}. Received: {list(channels)}. "
            "Keep at least one of them."
        )
