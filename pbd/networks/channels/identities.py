"""Identities of channels: two channels have the same one if they can only be removed together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor.

    Example:
        Behind a convolution with 4 filters that made the identities 3 to 6, a `Flatten` of 2x2 positions has the axis
        1 and the identities 3 4 5 6 3 4 5 6 3 4 5 6 3 4 5 6.
    """

    tensor: Any
    """A Keras tensor."""
    axis: int
    """The axis of the channels, counted from 0."""
    ids: np.ndarray
    """The identity of each position along the axis."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The tensor's shape, with the batch."""
        return tuple(self.tensor.shape)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation in a graph."""

    operation: Any
    inputs: tuple[Channels, ...]
    constants: tuple[Any, ...]
    """Its other arguments: the leaves of the structures, without None and truth values."""
    tensors: tuple[Any, ...]
    """The Keras tensors that it returns."""
    outputs: tuple[Channels, ...] = ()
    """Their channels."""

    @property
    def input(self) -> Channels:
        """The first input."""
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the first output, with the batch."""
        return tuple(self.tensors[0].shape)


class Identities:
    """Identities, numbered from 0 in the order of their creation; some are found to be the same (union-find)."""

    def __init__(self) -> None:
        self.created: dict[int, tuple[Any, np.ndarray]] = {}
        """By the `id` of an operation, the operation and the identities that it makes."""
        self._parents: list[int] = []
        self._fixed: list[tuple[np.ndarray, str]] = []

    def make(self, operation: Any, count: int) -> np.ndarray:
        """Return the identities that an operation makes, at all its calls the same ones.

        Args:
            operation: a layer with filters, or any other source of channels.
            count: their number.
        """
        _, ids = self.created.get(id(operation), (None, np.zeros(0, int)))
        if len(ids) < count:
            start = len(self._parents)
            ids = np.concatenate([ids, np.arange(start, start + count - len(ids))])
            self._parents.extend(range(start, int(ids[-1]) + 1))
            self.created[id(operation)] = operation, ids
        return ids[:count]

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Record that channels are the same, position by position."""
        for channel, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._root(channel), self._root(other)))
            self._parents[high] = low

    def fix(self, ids: np.ndarray, reason: str) -> None:
        """Record that these channels cannot be removed."""
        self._fixed.append((ids, reason))

    def classes(self) -> np.ndarray:
        """Return the smallest identity that is the same as each identity."""
        return np.array([self._root(channel) for channel in range(len(self._parents))], int)

    def reasons(self) -> Mapping[int, str]:
        """Return, by class, the first reason why the channels of the class cannot be removed."""
        classes, reasons = self.classes(), dict[int, str]()
        for ids, reason in self._fixed:
            for channel_class in np.unique(classes[ids]).tolist():
                reasons.setdefault(channel_class, reason)
        return reasons

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = channel = self._parents[self._parents[channel]]
        return channel
