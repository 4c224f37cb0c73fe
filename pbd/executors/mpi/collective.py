"""A collective of MPI ranks: a sum is one `Allreduce`, after all have agreed that they can go on."""

import contextlib
from typing import Any

import numpy as np

from pbd.collective import CollectiveAbortedError, CollectiveLostError

_WELL, _GAVE_UP, _LOST = 0, 1, 2


class MpiCollective:
    """The ranks of a communicator; a sum is one `Allreduce`, after all have agreed that they can go on."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.index, self.size = comm.Get_rank(), comm.Get_size()
        self._attempt = 0

    def start(self) -> None:
        """Begin what the collective does, or begin it again; all do."""
        self._attempt += 1

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        self._agree(_WELL)
        total = np.empty_like(values)
        self._comm.Allreduce(np.ascontiguousarray(values), total)
        return total

    def abort(self) -> None:
        with contextlib.suppress(CollectiveAbortedError):  # a loss is more: there is nothing else to try together
            self._agree(_GAVE_UP)

    def disconnect(self) -> None:
        with contextlib.suppress(CollectiveAbortedError, CollectiveLostError):
            self._agree(_LOST)

    def finish(self) -> None:
        """End what the collective did, for all or for nobody.

        Raises:
            CollectiveLostError: a worker was lost after the last sum.
        """
        self._agree(_WELL)

    def _agree(self, state: int) -> None:
        from mpi4py import MPI

        most = np.empty(3, np.int32)
        self._comm.Allreduce(np.array([state, self._attempt, -self._attempt], np.int32), most, op=MPI.MAX)
        worst, last, first = int(most[0]), int(most[1]), -int(most[2])
        if first != last:
            raise RuntimeError(f"workers of a collective are at attempts {first} and {last}")
        if worst == _LOST:
            raise CollectiveLostError("a worker of the collective lost the process that trains")
        if worst == _GAVE_UP:
            raise CollectiveAbortedError("a worker of the collective could not go on.")
