"""All-reduce among MPI ranks: one `Allreduce`, after all members have agreed that none of them failed."""

import contextlib
from typing import Any

import numpy as np

from pbd.collective import CollectiveAbortedError, CollectiveLostError

_OK, _ABORTED, _LOST = 0, 1, 2


class MpiCollective:
    """The ranks of a communicator."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.index, self.size = comm.Get_rank(), comm.Get_size()
        self._attempt = 0

    def start(self) -> None:
        """Start the next attempt at the work; all members call this."""
        self._attempt += 1

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        self._agree(_OK)
        total = np.empty_like(values)
        self._comm.Allreduce(np.ascontiguousarray(values), total)
        return total

    def abort(self) -> None:
        # If a member is lost at the same time, the loss counts: there is no other work to do together.
        with contextlib.suppress(CollectiveAbortedError):
            self._agree(_ABORTED)

    def disconnect(self) -> None:
        with contextlib.suppress(CollectiveAbortedError, CollectiveLostError):
            self._agree(_LOST)

    def finish(self) -> None:
        """Make sure that no member failed after the last sum, so that all members complete the work, or none.

        Raises:
            CollectiveAbortedError: a member aborted.
            CollectiveLostError: a member was lost after the last sum.
        """
        self._agree(_OK)

    def _agree(self, state: int) -> None:
        """Exchange the states of all members and raise the worst one.

        Raises:
            CollectiveAbortedError: a member aborted.
            CollectiveLostError: a member lost its training process.
        """
        from mpi4py import MPI

        # One MAX of the negated attempt also yields the smallest attempt.
        largest = np.empty(3, np.int32)
        self._comm.Allreduce(np.array([state, self._attempt, -self._attempt], np.int32), largest, op=MPI.MAX)
        worst, last, first = int(largest[0]), int(largest[1]), -int(largest[2])
        if first != last:
            raise RuntimeError(f"members of a collective are at attempts {first} and {last}")
        if worst == _LOST:
            raise CollectiveLostError("a worker of the collective lost its training process")
        if worst == _ABORTED:
            raise CollectiveAbortedError("a worker of the collective aborted.")
