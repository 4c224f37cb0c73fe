"""All-reduce among Dask workers, in the event loop of the first member, over the connections that workers have."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import WorkerPlugin, get_worker

from pbd.collective import CollectiveAbortedError, CollectiveLostError

ADD_UP = "pbd_add_up"
"""What a worker with a `AllReducePlugin` answers to."""
BROKEN, LOST = "a worker of the collective gave up.", "a worker of the collective was lost."


@dataclass
class _Sum:
    """One sum of a collective, on its way."""

    done: "asyncio.Future[bytes | str]"
    parts: dict[int, np.ndarray | None] = field(default_factory=dict)

    def bring(self, index: int, part: np.ndarray | None, size: int) -> None:
        """Take in one worker's part; one that gives up ends the waiting of all."""
        self.parts[index] = part
        if self.done.done():
            return
        if part is None:
            self.done.set_result(BROKEN)
        elif len(self.parts) == size:
            total = self.parts[0].copy()
            for other in range(1, size):  # in the order of the collective, whoever came first
                total += self.parts[other]
            self.done.set_result(total.tobytes())


class AllReducePlugin(WorkerPlugin):
    """Lets a worker add up what collectives bring to it; it runs in the worker's event loop alone."""

    name = "pbd-meeting"
    idempotent = True  # it holds the sums of other runs, too

    def setup(self, worker: Any) -> None:
        """Have the worker answer the calls of collectives."""
        self._sums: dict[tuple[str, int], _Sum] = {}
        self._lost: set[str] = set()
        worker.handlers[ADD_UP] = self.all_reduce_sum
        worker.pbd_meeting = self

    async def all_reduce_sum(
        self, collective: str, number: int, index: int, size: int, values: bytes | None, dtype: str
    ) -> bytes | str:
        """Wait for what the others bring, `None` from those that give up, and return the sum or what is wrong."""
        if collective in self._lost:
            return LOST
        coming = self._sums.setdefault((collective, number), _Sum(asyncio.get_running_loop().create_future()))
        coming.bring(index, None if values is None else np.frombuffer(values, dtype), size)
        if len(coming.parts) == size:
            del self._sums[collective, number]
        return await asyncio.shield(coming.done)

    def lose(self, collective: str) -> None:
        """Let every sum of the collective fail, now and from now on."""
        self._lost.add(collective)
        for key in [key for key in self._sums if key[0] == collective]:
            done = self._sums.pop(key).done
            if not done.done():
                done.set_result(LOST)


@dataclass(frozen=True)
class CollectiveMember:
    """One worker's place in a collective."""

    collective: str
    """Its name, one for each time that work is begun together."""
    addresses: tuple[str, ...]
    """Of the workers, in the order of the collective."""
    index: int


class DaskCollective:
    """A worker's view of its collective; made where the work is done."""

    def __init__(self, membership: CollectiveMember) -> None:
        self._team, addresses = membership.collective, membership.addresses
        self.index, self.size = membership.index, len(addresses)
        self._worker = get_worker()
        self._first = self._worker.rpc(addresses[0])
        self._sums = 0

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        return np.frombuffer(self._meet(values.tobytes(), values.dtype.str), values.dtype).reshape(values.shape)

    def abort(self) -> None:
        with contextlib.suppress(CollectiveAbortedError):
            self._meet(None, "")

    def disconnect(self) -> None:
        """Nothing: the coordinator hears of the loss, and tells where the collective meets."""

    def _meet(self, values: bytes | None, dtype: str) -> bytes:
        self._sums += 1
        place = {"collective": self._team, "index": self.index, "size": self.size, "number": self._sums}
        answering = getattr(self._first, ADD_UP)(**place, values=values, dtype=dtype)
        try:
            total = asyncio.run_coroutine_threadsafe(answering, self._worker.loop.asyncio_loop).result()
        except (OSError, CancelledError) as error:
            raise CollectiveLostError(LOST) from error
        if isinstance(total, str):
            raise CollectiveLostError(total) if total == LOST else CollectiveAbortedError(total)
        return total


async def lose(dask_worker: Any, collective: str) -> None:
    """Tell the worker where a collective meets that it is lost; for `Client.run`."""
    dask_worker.pbd_meeting.lose(collective)


def memberships(collective: str, addresses: Sequence[str]) -> list[CollectiveMember]:
    """Return everyone's place in a collective of these workers, which is met at the first."""
    return [CollectiveMember(collective, tuple(addresses), index) for index in range(len(addresses))]
