"""The collective: workers that call one function at the same time and sum arrays over all of them."""

from typing import Protocol

import numpy as np


class CollectiveAbortedError(Exception):
    """Another member aborted the current work; the collective is intact and can continue with other work."""


class CollectiveLostError(Exception):
    """Another member was lost; the collective no longer exists."""


class Collective(Protocol):
    """A collective as seen by one of its members. All members must request the same sums in the same order."""

    index: int
    size: int

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of all members' arrays, bit-identical in all members.

        Args:
            values: an array, of the same shape and type in all members.

        Raises:
            CollectiveAbortedError: a member aborted.
            CollectiveLostError: a member was lost.
        """
        ...

    def abort(self) -> None:
        """Make the next sum fail in the other members, since this member cannot continue; call instead of the sum."""
        ...


class WorkerCollective(Collective, Protocol):
    """The collective of a worker whose part of the work runs in a process that may be lost."""

    def disconnect(self, reason: str) -> None:
        """End the collective, since this worker lost its training process; call in place of the next sum.

        Args:
            reason: how the process was lost, for the other members.
        """
        ...


class SingleProcess:
    """A collective with a single member."""

    index = 0
    size = 1

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the values."""
        return values

    def abort(self) -> None:
        """Do nothing: there are no other members."""

    def disconnect(self, reason: str) -> None:
        """Do nothing: there are no other members."""


SINGLE = SingleProcess()


def all_reduce_sums(collective: Collective, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the sums of several arrays of one type, in a single exchange."""
    if collective.size == 1 or not arrays:
        return arrays
    flat = collective.all_reduce_sum(np.concatenate([array.reshape(-1) for array in arrays]))
    ends = np.cumsum([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), arrays, strict=True)]
