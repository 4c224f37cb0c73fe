"""Energy of a run by block and by worker, busy and idle; measured on every host that has a meter, never estimated."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pbd import energy
from pbd.energy import Activity, HostMeter, Reading
from pbd.records import BlockKey, BlockResult, WorkerReport

RESUMED = "These are the joules since the run was resumed: earlier energy is not included."


@dataclasses.dataclass(frozen=True)
class EnergyShares:
    """Joules of the block phase; `None` or absent if they were not measured."""

    blocks_j: dict[BlockKey, float | None]
    """Joules of each block."""
    busy_j: dict[int, float | None]
    """Joules of each worker while it trained."""
    idle_j: dict[int, float | None]
    """Joules of each worker while it waited."""

    def with_energy(self, results: Iterable[BlockResult]) -> list[BlockResult]:
        """Return the results with their joules."""
        return [dataclasses.replace(result, energy_j=self.blocks_j.get(result.key)) for result in results]

    def with_worker_energy(self, rows: Iterable[WorkerReport]) -> tuple[WorkerReport, ...]:
        """Return the workers' rows with their joules."""
        return tuple(
            dataclasses.replace(row, busy_j=self.busy_j.get(row.worker), idle_j=self.idle_j.get(row.worker))
            for row in rows
        )


class EnergyAccount:
    """The energy of a run's hosts since this was created.

    Args:
        meter: the meter of this host.
        read_workers: returns a reading by worker; one worker of each other host measures it, and the readings of
            all other workers only name their host.
    """

    def __init__(self, meter: HostMeter, read_workers: Callable[[], Mapping[int, Reading]]) -> None:
        self._meter, self._read_workers = meter, read_workers
        self._reading = meter.read()
        self._began_s = self._reading.ended_s
        self._host_of: dict[int, str] = {}

    def read(self) -> Reading:
        """Return the energy since the account was created; for a lost host, the last energy that it reported."""
        of_workers = self._read_workers()
        here = self._meter.read()
        self._host_of |= {worker: reading.hosts[0] for worker, reading in of_workers.items()}
        others = (reading.with_end(here.ended_s) for reading in of_workers.values())
        notes = tuple(note for note in self._reading.notes if note != energy.NO_ANSWER)  # the meter may answer now
        self._reading = energy.merge([dataclasses.replace(self._reading, notes=notes), here, *others])
        return self._reading.between(self._began_s, here.ended_s)

    def shares(self, results: Sequence[BlockResult], seconds: float) -> EnergyShares:
        """Attribute the energy of the block phase, which ends now.

        Args:
            results: the results of the blocks that were trained in it.
            seconds: its duration.
        """
        ended_s = self._meter.read().ended_s
        phase = self.read().between(ended_s - seconds, ended_s)
        activities = [pair for result in results for pair in self._activities(result, phase.started_s)]
        shares = EnergyShares({}, {}, {})
        for host in dict.fromkeys(self._host_of.values()):
            workers = [worker for worker, its_host in self._host_of.items() if its_host == host]
            here = [(key, activity) for key, activity in activities if activity.worker in workers]
            attribution = energy.attribute(phase.of_host(host), [activity for _, activity in here], workers)
            shares.busy_j.update(attribution.busy_j)
            shares.idle_j.update(attribution.idle_j)
            for (key, _), joules in zip(here, attribution.activities_j, strict=True):
                shares.blocks_j[key] = _sum(shares.blocks_j.get(key, 0.0), joules)
        return shares

    def _activities(self, result: BlockResult, began_s: float) -> Iterator[tuple[BlockKey, Activity]]:
        """Yield the key and the activity of each worker that trained a block; none for a block from the journal."""
        if result.worker is None or result.from_journal:
            return
        start_s = began_s + result.started_s
        for worker in self._host_of if result.shared else (result.worker,):
            yield result.key, Activity(worker, start_s, start_s + result.seconds)

    def summary(self, resumed: bool) -> dict[str, Any]:
        """Return the energy of the run so far for `report.json`, with a note if the run was resumed."""
        whole = self.read()
        if resumed and whole.total_j is not None:
            whole = dataclasses.replace(whole, notes=(RESUMED, *whole.notes))
        return whole.as_json()


@contextlib.contextmanager
def account(read_workers: Callable[[], Mapping[int, Reading]]) -> Iterator[EnergyAccount]:
    """Measure the energy of the block; see `EnergyAccount`."""
    with energy.measure() as meter:
        yield EnergyAccount(meter, read_workers)


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
