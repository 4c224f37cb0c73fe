"""A meter on each further host of a Dask cluster, which lives as long as the run; the workers' processes live on."""

import asyncio
import dataclasses
import uuid

from pbd import energy
from pbd.energy import HostMeter, NoMeter, Reading
from pbd.executors.dask.cluster import Cluster

_meters: dict[str, HostMeter] = {}  # of this worker: by run, one at most


class ClusterMeters:
    """What a run's coordinator has of the meters on its workers' hosts; trouble with them is no trouble of the run.

    Args:
        cluster: whose workers of now are made to measure, one on each host.
        here: the host that the coordinator measures itself.
    """

    def __init__(self, cluster: Cluster, here: str) -> None:
        self._cluster, self._run = cluster, uuid.uuid4().hex
        self._host_of = cluster.ask(cluster.look().there, energy.host_identity)
        first = {host: worker for worker, host in sorted(self._host_of.items(), reverse=True)}
        self._measuring = [worker for host, worker in first.items() if host != here]
        cluster.ask(self._measuring, begin, self._run)

    def read(self) -> dict[int, Reading]:
        """Return, by worker, what was read of its host; of a worker that is lost, only which host it was."""
        answers = self._cluster.ask(None, read, self._run)
        lost = {worker: self._lost(worker, host) for worker, host in self._host_of.items() if worker not in answers}
        return {self._cluster.number(worker): reading for worker, reading in (lost | answers).items()}

    def _lost(self, worker: str, host: str) -> Reading:
        said = "The Dask worker that measures its host did not answer: lost? See its own output."
        said = (said,) if worker in self._measuring else ()
        return dataclasses.replace(energy.unread(*said), hosts=(host,))

    def end(self) -> None:
        """Have the workers measure no longer."""
        self._cluster.ask(self._measuring, end, self._run)


async def begin(run: str) -> None:
    """In a worker: measure this host for a run; one that was before it, and did not end this, is over."""
    for other in list(_meters):
        await asyncio.to_thread(_meters.pop(other).stop)
    _meters[run] = HostMeter()


async def read(run: str) -> Reading:
    """In a worker: return what was read for the run, if this worker does."""
    return await asyncio.to_thread(_meters.get(run, NoMeter()).read)


async def end(run: str) -> None:
    """In a worker: stop measuring for the run."""
    if run in _meters:
        await asyncio.to_thread(_meters.pop(run).stop)
