"""Energy meters on the hosts of a Dask cluster other than the coordinator's; each exists for one run."""

import asyncio
import dataclasses
import uuid

from pbd import energy
from pbd.energy import HostMeter, NoMeter, Reading
from pbd.executors.dask.cluster import Cluster

_meters: dict[str, HostMeter] = {}  # of this worker process, by run; at most one


class ClusterMeters:
    """The meters of a run, as seen by the coordinator. Failures here do not fail the run.

    Args:
        cluster: one of its present workers on each host starts a meter.
        here: the host that the coordinator measures itself.
    """

    def __init__(self, cluster: Cluster, here: str) -> None:
        self._cluster, self._run = cluster, uuid.uuid4().hex
        self._host_of = cluster.ask(cluster.snapshot().present, energy.host_identity)
        first = {host: worker for worker, host in sorted(self._host_of.items(), reverse=True)}
        self._measuring = [worker for host, worker in first.items() if host != here]
        cluster.ask(self._measuring, begin, self._run)

    def read(self) -> dict[int, Reading]:
        """Return the reading of each worker; that of a lost worker only names its host."""
        answers = self._cluster.ask(None, read, self._run)
        lost = {worker: self._lost(worker, host) for worker, host in self._host_of.items() if worker not in answers}
        return {self._cluster.number(worker): reading for worker, reading in (lost | answers).items()}

    def _lost(self, worker: str, host: str) -> Reading:
        note = "The Dask worker that measures its host did not answer: lost? See its own output."
        notes = (note,) if worker in self._measuring else ()
        return dataclasses.replace(energy.unread(*notes), hosts=(host,))

    def end(self) -> None:
        """Stop the meters."""
        self._cluster.ask(self._measuring, end, self._run)


async def begin(run: str) -> None:
    """In a worker: start this host's meter for a run, and stop that of an earlier run that did not end it."""
    for other in list(_meters):
        await asyncio.to_thread(_meters.pop(other).stop)
    _meters[run] = HostMeter()


async def read(run: str) -> Reading:
    """In a worker: return the reading of the run's meter; without one, a reading that only names the host."""
    return await asyncio.to_thread(_meters.get(run, NoMeter()).read)


async def end(run: str) -> None:
    """In a worker: stop the run's meter."""
    if run in _meters:
        await asyncio.to_thread(_meters.pop(run).stop)
