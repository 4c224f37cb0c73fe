"""The meter of one host: its sensors, read often enough that no counter goes round unseen."""

import threading
import time
from array import array
from collections.abc import Callable

from pbd.energy.finding import DetectedSensors
from pbd.energy.readings import Reading, Trace
from pbd.energy.sensors import Sensor

MOST_MOMENTS = 2**14 + 1
"""Of a device that are remembered, 4.5 hours of seconds; then every other one is forgotten, but no joules."""


class Meter:
    """Reads all sensors at the same moments; threads may share it. A host without sensors has a meter that reads none.

    Args:
        finding: what is measured.
        clock: tells the moment in seconds; by default since the epoch, but never going back.
    """

    def __init__(self, finding: DetectedSensors, clock: Callable[[], float] | None = None) -> None:
        self._host = finding.host
        self._clock = clock or _steady_clock()
        self._lock = threading.Lock()
        self._stopped = False
        self._started_s = self._now_s = self._clock()
        tracks = [_Track(sensor) for sensor in finding.sensors]
        for track in tracks:
            track.advance(self._now_s)
        self._tracks = [track for track in tracks if track.lost is None]
        unread = (
            f"{track.sensor.device.name} cannot be read. Received: {track.lost}." for track in tracks if track.lost
        )
        self._complaints = (*finding.notes, *unread)

    def sample(self) -> None:
        """Read every sensor once; nothing after `stop`."""
        with self._lock:
            if self._stopped:
                return
            self._now_s = self._clock()
            for track in self._tracks:
                track.advance(self._now_s)

    def read(self) -> Reading:
        """Return what was spent from the beginning until now, or until it was stopped."""
        self.sample()
        with self._lock:
            traces = tuple(track.trace() for track in self._tracks)
            return Reading(self._started_s, self._now_s, traces, (self._host,), self._complaints)

    def stop(self) -> None:
        """Read every sensor for the last time."""
        self.sample()
        self._stopped = True


class _Track:
    """What a sensor said at each moment at which it could be read."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.lost: str | None = None
        self._times_s, self._joules = array("d"), array("d")

    def advance(self, now_s: float) -> None:
        try:
            spent = self.sensor.advance(now_s)
        except (OSError, ValueError) as error:
            self.lost = str(error)
            return
        self.lost = None
        self._times_s.append(now_s)
        self._joules.append(spent + (self._joules[-1] if self._joules else 0.0))
        if len(self._times_s) == MOST_MOMENTS:
            self._times_s, self._joules = self._times_s[::2], self._joules[::2]

    def trace(self) -> Trace:
        fault = self.sensor.fault
        if self.lost is not None:
            fault = f"lost after {self._times_s[-1] - self._times_s[0]:.0f} s: {self.lost}"
        return Trace(self.sensor.device, tuple(self._times_s), tuple(self._joules), fault)


def _steady_clock() -> Callable[[], float]:
    epoch_s = time.time() - time.monotonic()
    return lambda: epoch_s + time.monotonic()
