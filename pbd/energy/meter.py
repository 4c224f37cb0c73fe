"""The meter of one host: its sensors, sampled often enough that no counter overflows unnoticed."""

import threading
import time
from array import array
from collections.abc import Callable

from pbd.energy.detection import DetectedSensors
from pbd.energy.readings import Reading, Trace
from pbd.energy.sensors import Sensor

MAX_SAMPLES = 2**14 + 1
"""Samples kept per device, 4.5 hours at one per second; beyond that every other one is dropped, but no energy."""


class Meter:
    """Samples all sensors at the same times. Thread-safe; without sensors its readings have no devices.

    Args:
        detected: the sensors to read.
        clock: returns the time in seconds; by default since the epoch, but monotonic.
    """

    def __init__(self, detected: DetectedSensors, clock: Callable[[], float] | None = None) -> None:
        self._host = detected.host
        self._clock = clock or _monotonic_epoch_clock()
        self._lock = threading.Lock()
        self._stopped = False
        self._started_s = self._now_s = self._clock()
        tracks = [_Track(sensor) for sensor in detected.sensors]
        for track in tracks:
            track.sample(self._now_s)
        self._tracks = [track for track in tracks if track.error is None]
        unreadable = (
            f"{track.sensor.device.name} cannot be read. Received: {track.error}." for track in tracks if track.error
        )
        self._notes = (*detected.notes, *unreadable)

    def sample(self) -> None:
        """Sample every sensor once; does nothing after `stop`."""
        with self._lock:
            if self._stopped:
                return
            self._now_s = self._clock()
            for track in self._tracks:
                track.sample(self._now_s)

    def read(self) -> Reading:
        """Return the energy from the beginning until now, or until `stop`."""
        self.sample()
        with self._lock:
            traces = tuple(track.trace() for track in self._tracks)
            return Reading(self._started_s, self._now_s, traces, (self._host,), self._notes)

    def stop(self) -> None:
        """Sample every sensor for the last time."""
        self.sample()
        self._stopped = True


class _Track:
    """The samples of one sensor."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.error: str | None = None
        """Why the last sample failed; `None` if it did not."""
        self._times_s, self._joules = array("d"), array("d")

    def sample(self, now_s: float) -> None:
        try:
            joules = self.sensor.advance(now_s)
        except (OSError, ValueError) as error:
            self.error = str(error)
            return
        self.error = None
        self._times_s.append(now_s)
        self._joules.append(joules + (self._joules[-1] if self._joules else 0.0))
        if len(self._times_s) == MAX_SAMPLES:
            self._times_s, self._joules = self._times_s[::2], self._joules[::2]

    def trace(self) -> Trace:
        fault = self.sensor.fault
        if self.error is not None:
            fault = f"lost after {self._times_s[-1] - self._times_s[0]:.0f} s: {self.error}"
        return Trace(self.sensor.device, tuple(self._times_s), tuple(self._joules), fault)


def _monotonic_epoch_clock() -> Callable[[], float]:
    epoch_s = time.time() - time.monotonic()
    return lambda: epoch_s + time.monotonic()
