"""What turns the raw figures of one device into joules: counters of energy, and gauges of power."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MOST_WATTS = 1_000.0
"""More than any processor package draws: it says how soon a counter can have gone round."""


@dataclass(frozen=True)
class Device:
    """What spends the joules."""

    kind: str
    """`gpu`, `package` (a processor) or `core`, whose joules are among its package's."""
    number: str
    source: str
    """What measures it: `nvml`, `rapl` or `amd_msr`."""
    host: str
    identity: str
    """The same in every process and container that sees the device."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"


class Sensor(Protocol):
    """One device's energy, read again and again."""

    device: Device
    fault: str | None
    """Why what it said so far is less than the whole."""

    def advance(self, now_s: float) -> float:
        """Return the joules since it was read last, 0 the first time.

        Args:
            now_s: the moment, on a clock that never goes back.

        Raises:
            OSError: it cannot be read now.
            ValueError: what is read is not a figure.
        """


class Counter:
    """A register that counts energy up, and begins at 0 again where it is full.

    Args:
        device: what it belongs to.
        read: returns the count.
        joules_per_count: its unit.
        counts: how many there are until it is at 0 again; `None` where that never happens.
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
                self.fault = "its counter began anew"
            return max(0, count - last) * self._joules_per_count
        if (now_s - last_s) * MOST_WATTS > self._counts * self._joules_per_count:
            self.fault = f"not read for {now_s - last_s:.0f} s, in which its counter may have gone round unseen"
        return (count - last) % self._counts * self._joules_per_count


class Gauge:
    """A figure of power, in watts, integrated by the trapezoid rule."""

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
