"""All-reduce among MPI ranks: one `Allreduce`, after all members have agreed that none of them failed."""

import contextlib
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.system import watchdog

_OK, _ABORTED, _LOST = 0, 1, 2
_POLL_S = 1e-4
"""Between two looks at whether all members have come: a blocking call would occupy a core on which others train."""


class MpiCollective:
    """The ranks of a communicator."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.index, self.size = comm.Get_rank(), comm.Get_size()
        self._attempt, self._loss = 0, ""

    def start(self) -> None:
        """Start the next attempt at the work; all members call this."""
        self._attempt, self._loss = self._attempt + 1, ""

    def first_value(self, read: Callable[[], object]) -> object:
        """Return, in all members, what `read` returns in the first one; to be called between attempts by all."""
        return self._comm.bcast(read() if self.index == 0 else None)

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        self._agree(_OK)
        total = np.empty_like(values)
        _wait(self._comm.Iallreduce(np.ascontiguousarray(values), total))
        return total

    def abort(self) -> None:
        # If a member is lost at the same time, the loss counts: there is no other work to do together.
        with contextlib.suppress(CollectiveAbortedError):
            self._agree(_ABORTED)

    def disconnect(self, reason: str) -> None:
        with contextlib.suppress(CollectiveAbortedError, CollectiveLostError):
            self._agree(_LOST, reason)

    def finish(self) -> None:
        """Make sure that no member failed after the last sum, so that all members complete the work, or none.

        Raises:
            CollectiveAbortedError: a member aborted.
            CollectiveLostError: a member was lost after the last sum.
        """
        self._agree(_OK)

    def _agree(self, state: int, reason: str = "") -> None:
        """Exchange the states of all members and raise the worst one; after a loss, raise it until the next attempt.

        Args:
            state: the state of this member.
            reason: how this member lost its training process, if it did.

        Raises:
            CollectiveAbortedError: a member aborted.
            CollectiveLostError: a member lost its training process.
        """
        from mpi4py import MPI

        if self._loss:
            raise CollectiveLostError(self._loss)
        # One MAX of the negated attempt also yields the smallest attempt.
        states, largest = np.array([state, self._attempt, -self._attempt], np.int32), np.empty(3, np.int32)
        _wait(self._comm.Iallreduce(states, largest, op=MPI.MAX))
        worst, last, first = int(largest[0]), int(largest[1]), -int(largest[2])
        if first != last:
            raise RuntimeError(f"members of a collective are at attempts {first} and {last}")
        if worst == _LOST:
            self._loss = self._first_loss(reason)
            raise CollectiveLostError(self._loss)
        if worst == _ABORTED:
            raise CollectiveAbortedError("a worker of the collective aborted.")

    def _first_loss(self, reason: str) -> str:
        """Return, in all members, the first member that gives a reason for its loss, its host and the reason."""
        reasons = self._comm.allgather(reason and f"rank {self.index} on {platform.node()}: {reason}")
        return next(filter(None, reasons))


def _wait(request: Any) -> None:
    """Wait for all members as long as it takes: each watches itself, and heartbeats tell of one that is stopped."""
    while not request.Test():
        watchdog.touch()
        time.sleep(_POLL_S)
