"""Workers that do one piece of work together: each on its part of the data, all with the same sums."""

from typing import Protocol

import numpy as np


class CollectiveAbortedError(Exception):
    """Another worker of the collective gave up what they were at; they can try something else together."""


class CollectiveLostError(Exception):
    """Another worker of the collective was lost: there is no collective any more."""


class Collective(Protocol):
    """What a worker knows of those it works with. Everyone must ask for the same sums, in the same order."""

    index: int
    size: int

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of everyone's values, the same to the last bit for all.

        Args:
            values: of one shape and type in the whole collective.

        Raises:
            CollectiveAbortedError: a worker gave up instead.
            CollectiveLostError: a worker was lost.
        """
        ...

    def abort(self) -> None:
        """In place of the next sum: let it fail for the others, since this worker cannot go on."""
        ...


class WorkerCollective(Collective, Protocol):
    """The collective of a worker whose part is done in a process that may be lost."""

    def disconnect(self) -> None:
        """Instead of the next sum: tell the other members that this worker was lost and the collective ends."""
        ...


class SingleProcess:
    """The collective of one."""

    index = 0
    size = 1

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the values."""
        return values

    def abort(self) -> None:
        """There is nobody else to tell."""

    def disconnect(self) -> None:
        """There is nobody else to tell."""


SINGLE = SingleProcess()


def all_reduce_sums(collective: Collective, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the sums of several arrays of one type, in one exchange."""
    if collective.size == 1:
        return arrays
    flat = collective.all_reduce_sum(np.concatenate([array.reshape(-1) for array in arrays]))
    ends = np.cumsum([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), arrays, strict=True)]
