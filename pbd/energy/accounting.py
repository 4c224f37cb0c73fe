"""Whose the joules of a run are: its blocks', and its workers', busy and idle. Read on all hosts, estimated on none."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pbd import energy
from pbd.energy import HostMeter, Reading, Span
from pbd.records import BlockKey, BlockResult, WorkerReport

RESUMED = "These are the joules since the run was resumed: what was spent before is not among them."


@dataclasses.dataclass(frozen=True)
class EnergyShares:
    """Joules of the block phase; `None` or absent where they are not measured."""

    blocks_j: dict[BlockKey, float | None]
    """Of each block."""
    busy_j: dict[int, float | None]
    """Of each worker while it trained."""
    idle_j: dict[int, float | None]
    """Of each worker while it waited."""

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
    """What the hosts of a run spend from now on.

    Args:
        meter: of this host.
        ask: returns by worker what was read of its host, by one of the workers there; of this host nothing.
    """

    def __init__(self, meter: HostMeter, ask: Callable[[], Mapping[int, Reading]]) -> None:
        self._meter, self._ask = meter, ask
        self._known = meter.read()
        self._began_s = self._known.ended_s
        self._host_of: dict[int, str] = {}

    def read(self) -> Reading:
        """Return what was spent so far; what a host that is lost had read before is kept."""
        others = self._ask()
        own = self._meter.read()
        self._host_of |= {worker: reading.hosts[0] for worker, reading in others.items()}
        now = (reading.ending_at(own.ended_s) for reading in others.values())
        self._known = energy.merge([self._known, own, *now])
        return self._known.between(self._began_s, own.ended_s)

    def shares(self, results: Sequence[BlockResult], seconds: float) -> EnergyShares:
        """Share out the joules of the block phase.

        Args:
            results: what was trained in it.
            seconds: since it began; it ends now.
        """
        ended_s = self._meter.read().ended_s
        phase = self.read().between(ended_s - seconds, ended_s)
        spans = [named for result in results for named in self._spans(result, phase.started_s)]
        shares = EnergyShares({}, {}, {})
        for host in dict.fromkeys(self._host_of.values()):
            workers = [worker for worker, its_host in self._host_of.items() if its_host == host]
            here = [(name, span) for name, span in spans if span.worker in workers]
            host_shares = energy.share_out(phase.of_host(host), [span for _, span in here], workers)
            shares.busy_j.update(host_shares.busy_j)
            shares.idle_j.update(host_shares.idle_j)
            for (name, _), joules in zip(here, host_shares.spans_j, strict=True):
                shares.blocks_j[name] = _sum(shares.blocks_j.get(name, 0.0), joules)
        return shares

    def _spans(self, result: BlockResult, began_s: float) -> Iterator[tuple[BlockKey, Span]]:
        """Yield when which workers trained a block; nothing for one that was only found."""
        if result.worker is None or result.from_journal:
            return
        start_s = began_s + result.started_s
        for worker in self._host_of if result.shared else (result.worker,):
            yield result.key, Span(worker, start_s, start_s + result.seconds)

    def summary(self, resumed: bool) -> dict[str, Any]:
        """Return what `report.json` says of the whole run so far; of one that was resumed, that it is not the whole."""
        whole = self.read()
        if resumed and whole.total_j is not None:
            whole = dataclasses.replace(whole, notes=(RESUMED, *whole.notes))
        return whole.as_json()


@contextlib.contextmanager
def account(ask: Callable[[], Mapping[int, Reading]]) -> Iterator[EnergyAccount]:
    """Keep account of the joules while the block runs; see `EnergyAccount`."""
    with energy.measure() as meter:
        yield EnergyAccount(meter, ask)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
