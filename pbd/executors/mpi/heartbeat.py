"""Heartbeats between MPI ranks: they detect a rank that was stopped or whose host is gone, which no library reports."""

import functools
from typing import Any

from pbd.errors import NoWorkersError, PbdError
from pbd.system.watchdog import TICK_S, Timeout

_FEWEST_BEATS = 5


class HeartbeatMonitor:
    """Rank 0 and each other rank send each other a message about once a second.

    All ranks create a monitor at the same time.

    Args:
        limit_s: the longest silence of a rank; at least a few heartbeats.
    """

    def __init__(self, limit_s: float) -> None:
        self._comm = _communicator()
        rank, size = self._comm.Get_rank(), self._comm.Get_size()
        limit_s = max(limit_s, _FEWEST_BEATS * TICK_S)
        self._timeouts = {other: Timeout(limit_s) for other in (range(1, size) if rank == 0 else (0,))}
        self._sending: dict[int, Any] = {}

    def exchange(self) -> PbdError | None:
        """Send and receive heartbeats; return an error if a rank has been silent for too long."""
        for other, timeout in self._timeouts.items():
            while self._comm.iprobe(source=other):
                self._comm.recv(source=other)
                timeout.renew()
            # A rank that receives nothing gets no second message: its queue must not grow.
            if other not in self._sending or self._sending[other].Test():
                self._sending[other] = self._comm.isend(None, dest=other)
            if timeout.expired():
                return NoWorkersError(
                    f"rank {other} sent no heartbeat for {timeout.silent_s:.0f} s: it is stopped, or its host is gone",
                    "Finished work is kept: go on with --resume --run-dir DIR.",
                )
        return None


@functools.cache
def _communicator() -> Any:
    """Return this process's communicator for heartbeats; it is never freed, since late heartbeats may be under way."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()
