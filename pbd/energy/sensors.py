"""Sensors convert the raw readings of one device into joules: counters of energy, and gauges of power."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MAX_WATTS = 1_000.0
"""More than any processor package draws: bounds how soon a counter can overflow."""


@dataclass(frozen=True)
class Device:
    """A device that consumes energy."""

    kind: str
    """`gpu`, `package` (a processor) or `core`, whose energy is part of its package's."""
    number: str
    source: str
    """The interface that measures it: `nvml`, `rapl` or `amd_msr`."""
    host: str
    identity: str
    """Identical in every process and container that sees the device."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"


class Sensor(Protocol):
    """Measures the energy of one device."""

    device: Device
    fault: str | None
    """Why energy is missing from the joules returned so far."""

    def advance(self, now_s: float) -> float:
        """Return the joules since the last call, 0 at the first.

        Args:
            now_s: the time, by a monotonic clock.

        Raises:
            OSError: the device cannot be read now.
            ValueError: the reading is not a number.
        """


class Counter:
    """A register that counts energy, and overflows to 0.

    Args:
        device: the device that it belongs to.
        read: returns the count.
        joules_per_count: the unit of the count.
        counts: the number of counts until it overflows; `None` if it never does.
    """

    def __init__(
        self, device: Device, read: Callable[[], int], joules_per_count: float, counts: int | None = None
    ) -> None:
        self.device = device
        self.fault: str | None = None
        self._read = read
        self._joules_per_count = joules_per_count
        self._counts = counts
        self._last: tuple[float, int] | None = None

    def advance(self, now_s: float) -> float:
        count = self._read()
        last_s, last = self._last or (now_s, count)
        self._last = (now_s, count)
        if self._counts is None:
            if count < last:
                self.fault = "its counter was reset"
            return max(0, count - last) * self._joules_per_count
        # The difference modulo the range is right for one overflow only.
        if (now_s - last_s) * MAX_WATTS > self._counts * self._joules_per_count:
            self.fault = f"not read for {now_s - last_s:.0f} s, in which its counter may have overflowed twice"
        return (count - last) % self._counts * self._joules_per_count


class Gauge:
    """A reading of power in watts, integrated by the trapezoidal rule."""

    def __init__(self, device: Device, read: Callable[[], float]) -> None:
        self.device = device
        self.fault: str | None = None
        self._read = read
        self._last: tuple[float, float] | None = None

    def advance(self, now_s: float) -> float:
        try:
            watts = self._read()
        except (OSError, ValueError):
            self._last, self.fault = None, "its power was not known all the time"
            raise
        last_s, last_watts = self._last or (now_s, watts)
        self._last = (now_s, watts)
        return (now_s - last_s) * (last_watts + watts) / 2
