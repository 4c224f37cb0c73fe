"""What was measured: joules over time, device by device; of one host, or of several together."""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pbd.energy.sensors import Device

COUNTED = ("gpu", "package")
"""The kinds of device that add up to the total; cores are parts of packages."""
WHOLE = 0.95
"""A trace that covers a smaller part of the time is partial."""


@dataclass(frozen=True)
class Trace:
    """The joules of one device; between two moments its power is taken to be even."""

    device: Device
    times_s: tuple[float, ...]
    """Seconds since the epoch, ascending."""
    joules: tuple[float, ...]
    """Spent from the first moment to each."""
    fault: str | None = None
    """Why it is less than the whole."""

    @property
    def total_j(self) -> float:
        return self.joules[-1] - self.joules[0]

    @property
    def seconds(self) -> float:
        return self.times_s[-1] - self.times_s[0]

    def joules_at(self, moment_s: float) -> float:
        """Return what was spent up to a moment; before the first and after the last nothing is known to be."""
        after = bisect.bisect_left(self.times_s, moment_s)
        if after in (0, len(self.times_s)):
            return self.joules[min(after, len(self.times_s) - 1)]
        (begin_s, end_s), (low, high) = self.times_s[after - 1 : after + 1], self.joules[after - 1 : after + 1]
        return low + (high - low) * (moment_s - begin_s) / (end_s - begin_s)

    def between(self, start_s: float, end_s: float) -> "Trace":
        """Return the part between two moments, as far as it was read."""
        first_s, last_s = self.times_s[0], self.times_s[-1]
        start_s, end_s = (min(max(first_s, moment_s), last_s) for moment_s in (start_s, end_s))
        inner = [pair for pair in zip(self.times_s, self.joules, strict=True) if start_s < pair[0] < end_s]
        ends = (start_s, self.joules_at(start_s)), (end_s, self.joules_at(end_s))
        times_s, joules = zip(ends[0], *inner, ends[1], strict=True)
        return replace(self, times_s=times_s, joules=joules)


@dataclass(frozen=True)
class Reading:
    """What was measured between two moments."""

    started_s: float
    """Seconds since the epoch."""
    ended_s: float
    traces: tuple[Trace, ...]
    hosts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Why not everything is measured, a line each, with the remedy."""

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s

    @property
    def total_j(self) -> float | None:
        """Joules of all GPUs and processor packages that are measured; `None` where none is."""
        counted = [trace.total_j for trace in self.traces if trace.device.kind in COUNTED]
        return sum(counted) if counted else None

    @property
    def by_kind_j(self) -> dict[str, float]:
        """Joules of the GPUs, the packages and, as a part of these, the cores; only of those that are measured."""
        kinds = dict.fromkeys(trace.device.kind for trace in self.traces)
        return {kind: sum(trace.total_j for trace in self.traces if trace.device.kind == kind) for kind in kinds}

    @property
    def source(self) -> str:
        """What measured it: `nvml`, `rapl`, `amd_msr`, several joined by `+`, or `none`."""
        return "+".join(dict.fromkeys(trace.device.source for trace in self.traces)) or "none"

    @property
    def faults(self) -> tuple[str, ...]:
        """Why there are joules that are not counted, a line each."""
        said, measured = [], {trace.device.host for trace in self.traces}
        for trace in self.traces:
            short = f"read for {trace.seconds:.0f} of {self.seconds:.0f} s" if self._misses(trace) else None
            if trace.fault or short:
                said.append(f"{trace.device.name} ({trace.device.source}): {trace.fault or short}")
        if measured and len(measured) < len(self.hosts):
            said.append(f"only {len(measured)} of {len(self.hosts)} hosts are measured")
        return tuple(said)

    @property
    def partial(self) -> bool:
        """Whether there are joules that are not counted, by a meter that was there."""
        return bool(self.faults)

    def _misses(self, trace: Trace) -> bool:
        return trace.seconds < WHOLE * self.seconds

    def joules_at(self, moment_s: float) -> float:
        """Return what was spent up to a moment by all that counts."""
        return sum(trace.joules_at(moment_s) for trace in self.traces if trace.device.kind in COUNTED)

    def between(self, start_s: float, end_s: float) -> "Reading":
        """Return the part between two moments; what a trace lacks anywhere is taken to be lacking there."""
        traces = tuple(trace.between(start_s, end_s) for trace in self.traces)
        return replace(self, started_s=start_s, ended_s=end_s, traces=traces)

    def covers(self, start_s: float, end_s: float) -> bool:
        """Return whether every device was read for nearly all of this time, as far as it lies within the reading."""
        part = self.between(max(start_s, self.started_s), min(end_s, self.ended_s))
        return not any(part._misses(trace) for trace in part.traces)

    def ending_at(self, moment_s: float) -> "Reading":
        """Return the same by a clock that shows this moment at its end: clocks of hosts differ."""
        later_s = moment_s - self.ended_s
        traces = tuple(
            replace(trace, times_s=tuple(time_s + later_s for time_s in trace.times_s)) for trace in self.traces
        )
        return replace(self, started_s=self.started_s + later_s, ended_s=moment_s, traces=traces)

    def of_host(self, host: str) -> "Reading":
        """Return the part of one host."""
        traces = tuple(trace for trace in self.traces if trace.device.host == host)
        return replace(self, traces=traces, hosts=(host,))

    def as_json(self) -> dict[str, Any]:
        """Return what `report.json` says of it."""
        return {
            "source": self.source,
            "total_j": self.total_j,
            "by_kind_j": self.by_kind_j,
            "seconds": self.seconds,
            "hosts": len(self.hosts),
            "partial": self.partial,
            "notes": [*self.faults, *self.notes],
        }


def merge(readings: Iterable[Reading]) -> Reading:
    """Return what several processes read, of one host or many; a device that several read counts once, by its longest.

    Raises:
        ValueError: there are none.
    """
    every = list(readings)
    if not every:
        raise ValueError("at least one reading is merged. Received: none.")
    longest: dict[str, Trace] = {}
    for trace in (trace for reading in every for trace in reading.traces):
        known = longest.setdefault(trace.device.identity, trace)
        if trace.seconds >= known.seconds:  # the later one knows of a loss
            longest[trace.device.identity] = trace
    return Reading(
        started_s=min(reading.started_s for reading in every),
        ended_s=max(reading.ended_s for reading in every),
        traces=tuple(longest.values()),
        hosts=tuple(dict.fromkeys(host for reading in every for host in reading.hosts)),
        notes=tuple(dict.fromkeys(line for reading in every for line in reading.notes)),
    )
