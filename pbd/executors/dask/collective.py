"""All-reduce among Dask workers, in the event loop of the first member, over the workers' existing connections."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import WorkerPlugin, get_worker

from pbd.collective import CollectiveAbortedError, CollectiveLostError

HANDLER = "pbd_all_reduce_sum"
"""The name of the remote call that a worker with an `AllReducePlugin` handles."""
ABORTED, LOST = "a worker of the collective aborted.", "a worker of the collective was lost."


@dataclass
class _PendingSum:
    """One sum of a collective, until all members have sent their values."""

    total: "asyncio.Future[bytes | str]"
    members: set[int] = field(default_factory=set)
    """Indices of the members that have sent their values or aborted."""
    values: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, index: int, values: np.ndarray | None, size: int) -> None:
        """Add one member's values; `None` aborts the sum for all members."""
        self.members.add(index)
        if self.total.done():
            return
        if values is None:
            self.total.set_result(ABORTED)
            return
        self.values[index] = values
        if len(self.values) == size:
            total = self.values[0].copy()
            for other in range(1, size):  # in the order of the members, so that rounding does not depend on arrival
                total += self.values[other]
            self.total.set_result(total.tobytes())


class AllReducePlugin(WorkerPlugin):
    """Lets a worker sum up the values of the collectives whose first member it is, in its event loop."""

    name = "pbd-all-reduce"
    idempotent = True  # a second registration would drop the pending sums of other runs

    def setup(self, worker: Any) -> None:
        """Register the handler of the remote call."""
        self._pending: dict[tuple[str, int], _PendingSum] = {}
        self._lost: set[str] = set()
        worker.handlers[HANDLER] = self.all_reduce_sum
        worker.pbd_all_reduce = self

    async def all_reduce_sum(
        self, collective: str, number: int, index: int, size: int, values: bytes | None, dtype: str
    ) -> bytes | str:
        """Return the sum of all members' values, or `ABORTED` or `LOST`.

        Args:
            collective: the collective's name.
            number: the number of the sum within the collective.
            index: the member's index.
            size: the number of members.
            values: the member's values; `None` aborts.
            dtype: the type of the values.
        """
        if collective in self._lost:
            return LOST
        pending = self._pending.setdefault(
            (collective, number), _PendingSum(asyncio.get_running_loop().create_future())
        )
        pending.add(index, None if values is None else np.frombuffer(values, dtype), size)
        if len(pending.members) == size:
            del self._pending[collective, number]
        return await asyncio.shield(pending.total)  # a member that is cancelled must not cancel the others' future

    def disconnect(self, collective: str) -> None:
        """Let every pending and future sum of a collective return `LOST`."""
        self._lost.add(collective)
        for key in [key for key in self._pending if key[0] == collective]:
            total = self._pending.pop(key).total
            if not total.done():
                total.set_result(LOST)


@dataclass(frozen=True)
class CollectiveMember:
    """One worker's membership of a collective."""

    collective: str
    """The collective's name, unique for each attempt."""
    addresses: tuple[str, ...]
    """Addresses of the members, in their order."""
    index: int


class DaskCollective:
    """A collective as seen by one of its workers."""

    def __init__(self, member: CollectiveMember) -> None:
        self._name, addresses = member.collective, member.addresses
        self.index, self.size = member.index, len(addresses)
        self._worker = get_worker()
        self._first = self._worker.rpc(addresses[0])
        self._sums = 0

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        return np.frombuffer(self._call(values.tobytes(), values.dtype.str), values.dtype).reshape(values.shape)

    def abort(self) -> None:
        with contextlib.suppress(CollectiveAbortedError):
            self._call(None, "")

    def disconnect(self, reason: str) -> None:
        """Do nothing: the coordinator detects the loss and disconnects the collective."""

    def _call(self, values: bytes | None, dtype: str) -> bytes:
        self._sums += 1
        place = {"collective": self._name, "index": self.index, "size": self.size, "number": self._sums}
        call = getattr(self._first, HANDLER)(**place, values=values, dtype=dtype)
        loop = self._worker.loop.asyncio_loop  # Tornado declares it in a subclass only
        try:
            total = asyncio.run_coroutine_threadsafe(call, loop).result()
        except (OSError, CancelledError) as error:
            raise CollectiveLostError(LOST) from error
        if isinstance(total, str):
            raise CollectiveLostError(total) if total == LOST else CollectiveAbortedError(total)
        return total


async def disconnect(dask_worker: Any, collective: str) -> None:
    """In the first member of a collective: let all its sums fail; for `Client.run`."""
    dask_worker.pbd_all_reduce.disconnect(collective)


def members(collective: str, addresses: Sequence[str]) -> list[CollectiveMember]:
    """Return the memberships of workers in a new collective."""
    return [CollectiveMember(collective, tuple(addresses), index) for index in range(len(addresses))]
