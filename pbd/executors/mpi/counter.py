"""An atomic counter; each rank fetches the index of its next group or function from it."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from pbd.executors.mpi import world

_POLL_S = 0.02

W = TypeVar("W")


class SharedCounter:
    """Counts up from 0 and returns each number to one rank only (one-sided `Fetch_and_op` on rank 0).

    Creating and closing it is collective.
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._sum, self._one = MPI.SUM, np.ones(1, np.int64)
        itemsize = self._one.itemsize
        self._window = MPI.Win.Allocate(itemsize if comm.Get_rank() == 0 else 0, itemsize, comm=comm)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._make_progress, args=(comm,), daemon=True)
        if comm.Get_rank() == 0:
            self._window.Lock(0)  # MPI allows local stores that others read within an epoch only
            memory = self._window.tomemory()
            np.frombuffer(memory, np.int64)[:] = 0  # type: ignore[call-overload]  # mpi4py's stub omits __buffer__
            self._window.Unlock(0)
            if world.allows_threads():  # without threads, ranks wait until rank 0 next receives progress events
                self._thread.start()
        comm.Barrier()

    def _make_progress(self, comm: Any) -> None:
        """Call MPI periodically: a one-sided operation may complete only while its target is in an MPI call."""
        while not self._closing.wait(_POLL_S):
            comm.iprobe(source=0)  # matches nothing: a probe that finds a message does nothing else

    def next(self) -> int:
        """Return the next number."""
        number = np.zeros(1, np.int64)
        self._window.Lock(0)
        self._window.Fetch_and_op(self._one, number, 0, 0, self._sum)
        self._window.Unlock(0)
        return int(number[0])

    def draw(self, pool: Sequence[W]) -> Iterator[W]:
        """Yield this rank's part of the pool, drawn one at a time."""
        while (number := self.next()) < len(pool):
            yield pool[number]

    def close(self) -> None:
        """Free the window; all ranks call this."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._window.Free()
