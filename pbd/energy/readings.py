"""Energy readings: joules over time by device, of one host or of several."""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pbd.energy.sensors import Device

TOTAL_KINDS = ("gpu", "package")
"""The kinds of device whose sum is the total; cores are parts of packages."""
COMPLETE = 0.95
"""A trace that covers a smaller fraction of the time is partial."""


@dataclass(frozen=True)
class Trace:
    """The joules of one device over time; power is taken to be constant between two samples."""

    device: Device
    times_s: tuple[float, ...]
    """Seconds since the epoch, ascending."""
    joules: tuple[float, ...]
    """Since the first sample, at each of `times_s`."""
    fault: str | None = None
    """Why energy is missing."""

    @property
    def total_j(self) -> float:
        return self.joules[-1] - self.joules[0]

    @property
    def seconds(self) -> float:
        return self.times_s[-1] - self.times_s[0]

    def joules_at(self, time_s: float) -> float:
        """Return the joules until a time, interpolated; constant before the first sample and after the last."""
        after = bisect.bisect_left(self.times_s, time_s)
        if after in (0, len(self.times_s)):
            return self.joules[min(after, len(self.times_s) - 1)]
        (begin_s, end_s), (low, high) = self.times_s[after - 1 : after + 1], self.joules[after - 1 : after + 1]
        return low + (high - low) * (time_s - begin_s) / (end_s - begin_s)

    def between(self, start_s: float, end_s: float) -> "Trace":
        """Return the part between two times, as far as it was sampled."""
        first_s, last_s = self.times_s[0], self.times_s[-1]
        start_s, end_s = (min(max(first_s, time_s), last_s) for time_s in (start_s, end_s))
        inner = [pair for pair in zip(self.times_s, self.joules, strict=True) if start_s < pair[0] < end_s]
        ends = (start_s, self.joules_at(start_s)), (end_s, self.joules_at(end_s))
        times_s, joules = zip(ends[0], *inner, ends[1], strict=True)
        return replace(self, times_s=times_s, joules=joules)


@dataclass(frozen=True)
class Reading:
    """The energy between two times."""

    started_s: float
    """Seconds since the epoch."""
    ended_s: float
    traces: tuple[Trace, ...]
    hosts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Why devices are not measured, one line each, with the remedy."""

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s

    @property
    def total_j(self) -> float | None:
        """Joules of all measured GPUs and processor packages; `None` without any."""
        counted = [trace.total_j for trace in self.traces if trace.device.kind in TOTAL_KINDS]
        return sum(counted) if counted else None

    @property
    def by_kind_j(self) -> dict[str, float]:
        """Joules of the measured GPUs, packages and cores (which are part of the packages)."""
        kinds = dict.fromkeys(trace.device.kind for trace in self.traces)
        return {kind: sum(trace.total_j for trace in self.traces if trace.device.kind == kind) for kind in kinds}

    @property
    def source(self) -> str:
        """The interfaces that measured it: `nvml`, `rapl`, `amd_msr`, joined by `+`, or `none`."""
        return "+".join(dict.fromkeys(trace.device.source for trace in self.traces)) or "none"

    @property
    def faults(self) -> tuple[str, ...]:
        """Why energy of measured devices or hosts is missing, one line each."""
        lines, measured = [], {trace.device.host for trace in self.traces}
        for trace in self.traces:
            short = f"read for {trace.seconds:.0f} of {self.seconds:.0f} s" if self._is_incomplete(trace) else None
            if trace.fault or short:
                lines.append(f"{trace.device.name} ({trace.device.source}): {trace.fault or short}")
        if measured and len(measured) < len(self.hosts):
            lines.append(f"only {len(measured)} of {len(self.hosts)} hosts are measured")
        return tuple(lines)

    @property
    def partial(self) -> bool:
        """Whether energy of a measured device or host is missing."""
        return bool(self.faults)

    def _is_incomplete(self, trace: Trace) -> bool:
        return trace.seconds < COMPLETE * self.seconds

    def joules_at(self, time_s: float) -> float:
        """Return the joules until a time of all GPUs and packages."""
        return sum(trace.joules_at(time_s) for trace in self.traces if trace.device.kind in TOTAL_KINDS)

    def between(self, start_s: float, end_s: float) -> "Reading":
        """Return the part between two times; a trace that is incomplete anywhere counts as incomplete there."""
        traces = tuple(trace.between(start_s, end_s) for trace in self.traces)
        return replace(self, started_s=start_s, ended_s=end_s, traces=traces)

    def covers(self, start_s: float, end_s: float) -> bool:
        """Return whether every device was sampled for nearly all of this time, as far as it is within the reading."""
        part = self.between(max(start_s, self.started_s), min(end_s, self.ended_s))
        return not any(part._is_incomplete(trace) for trace in part.traces)

    def with_end(self, ended_s: float) -> "Reading":
        """Return the reading shifted in time so that it ends then: the clocks of hosts differ."""
        shift_s = ended_s - self.ended_s
        traces = tuple(
            replace(trace, times_s=tuple(time_s + shift_s for time_s in trace.times_s)) for trace in self.traces
        )
        return replace(self, started_s=self.started_s + shift_s, ended_s=ended_s, traces=traces)

    def of_host(self, host: str) -> "Reading":
        """Return the part of one host."""
        traces = tuple(trace for trace in self.traces if trace.device.host == host)
        return replace(self, traces=traces, hosts=(host,))

    def as_json(self) -> dict[str, Any]:
        """Return it as in `report.json`."""
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
    """Merge the readings of several processes and hosts; of each device the longest trace counts.

    Raises:
        ValueError: there are none.
    """
    every = list(readings)
    if not every:
        raise ValueError("at least one reading is merged. Received: none.")
    longest: dict[str, Trace] = {}
    for trace in (trace for reading in every for trace in reading.traces):
        current = longest.setdefault(trace.device.identity, trace)
        if trace.seconds >= current.seconds:  # of equally long ones the later: it may report a fault
            longest[trace.device.identity] = trace
    return Reading(
        started_s=min(reading.started_s for reading in every),
        ended_s=max(reading.ended_s for reading in every),
        traces=tuple(longest.values()),
        hosts=tuple(dict.fromkeys(host for reading in every for host in reading.hosts)),
        notes=tuple(dict.fromkeys(line for reading in every for line in reading.notes)),
    )
