"""Meters from recordings, in place of hardware: the same sensors, fed with what was read before."""

from collections.abc import Sequence
from dataclasses import dataclass

from pbd.energy.finding import DetectedSensors
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading
from pbd.energy.sensors import Counter, Device, Gauge, Sensor


@dataclass(frozen=True)
class Recording:
    """What one device showed, moment after moment."""

    device: Device
    shown: Sequence[float | None]
    """Watts, or counts of a register; `None` where it could not be read."""
    joules_per_count: float | None = None
    """The register's unit; `None` where watts are shown."""
    counts: int | None = None
    """How many the register has; `None` where it never begins anew."""

    def sensor(self) -> Sensor:
        """Return a sensor that shows it once more."""
        left = iter(self.shown)

        def read() -> float:
            value = next(left, None)
            if value is None:
                raise OSError("the recording has nothing here")
            return value

        if self.joules_per_count is None:
            return Gauge(self.device, read)
        return Counter(self.device, lambda: int(read()), self.joules_per_count, self.counts)


def replay(times_s: Sequence[float], recordings: Sequence[Recording]) -> Reading:
    """Return what a meter reads that is read at these moments; each recording has a value for each of them.

    Raises:
        ValueError: there are fewer than two moments.
    """
    if len(times_s) < 2:
        raise ValueError(f"a recording has at least two moments. Received: {len(times_s)}.")
    moments = iter(times_s)
    host = recordings[0].device.host if recordings else "replayed"
    meter = Meter(DetectedSensors(host, tuple(recording.sensor() for recording in recordings)), moments.__next__)
    for _ in times_s[2:]:
        meter.sample()
    return meter.read()
