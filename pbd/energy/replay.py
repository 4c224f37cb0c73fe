"""Replay of recorded sensors, for tests and for measurements of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass

from pbd.energy.detection import DetectedSensors
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading
from pbd.energy.sensors import Counter, Device, Gauge, Sensor


@dataclass(frozen=True)
class Recording:
    """The recorded values of one device."""

    device: Device
    values: Sequence[float | None]
    """Watts, or counts of a register; `None` if it could not be read."""
    joules_per_count: float | None = None
    """The register's unit; `None` for watts."""
    counts: int | None = None
    """The number of counts until the register overflows; `None` if it never does."""

    def sensor(self) -> Sensor:
        """Return a sensor that returns the recorded values."""
        values = iter(self.values)

        def read() -> float:
            value = next(values, None)
            if value is None:
                raise OSError("the recording has no value here")
            return value

        if self.joules_per_count is None:
            return Gauge(self.device, read)
        return Counter(self.device, lambda: int(read()), self.joules_per_count, self.counts)


def replay(times_s: Sequence[float], recordings: Sequence[Recording]) -> Reading:
    """Return the reading of a meter that samples recorded sensors at these times, one value of each per time.

    Raises:
        ValueError: there are fewer than two times.
    """
    if len(times_s) < 2:
        raise ValueError(f"a recording has at least two times. Received: {len(times_s)}.")
    clock = iter(times_s)
    host = recordings[0].device.host if recordings else "replayed"
    meter = Meter(DetectedSensors(host, tuple(recording.sensor() for recording in recordings)), clock.__next__)
    for _ in times_s[2:]:  # the meter's constructor and `read` take one sample each
        meter.sample()
    return meter.read()
