"""The meter of this host in a thread of its own: its failures and hangs never affect the measured work."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from pbd.energy.detection import DetectedSensors, detect, host_identity
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading

INTERVAL_S = 1.0
ANSWER_LIMIT_S = 5.0
"""The longest wait for the meter's thread: a driver may hang."""
NO_ANSWER = f"A meter did not answer for {ANSWER_LIMIT_S:.0f} s. Check its driver with nvidia-smi and dmesg."
"""The note of a reading without devices, which a later reading may have."""


def unread(*notes: str) -> Reading:
    """Return a reading without devices, which only names this host."""
    now_s = time.time()
    return Reading(now_s, now_s, (), (host_identity(),), notes)


class NoMeter:
    """Stands in for a meter if another process measures this host."""

    def read(self) -> Reading:
        """Return a reading without devices."""
        return unread()


class HostMeter:
    """Measures this host from now on. Thread-safe.

    Args:
        detect_sensors: returns the sensors to read; all of this host's by default.
        interval_s: the time between two samples of the sensors.
    """

    def __init__(
        self, detect_sensors: Callable[[], DetectedSensors] | None = None, interval_s: float = INTERVAL_S
    ) -> None:
        self._requests: queue.SimpleQueue[Future[Reading]] = queue.SimpleQueue()
        self._ready, self._stopped = threading.Event(), threading.Event()
        self._final_reading: Callable[[], Reading] = unread
        self._thread = threading.Thread(
            target=self._work, args=(detect_sensors, interval_s), name="energy", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the first sample is taken or has failed."""
        self._ready.wait(ANSWER_LIMIT_S)

    def read(self) -> Reading:
        """Return the energy until now, or until `stop`; a reading without devices if the meter failed or hangs."""
        if not self._thread.is_alive():
            return self._final_reading()
        reading: Future[Reading] = Future()
        self._requests.put(reading)
        try:
            return reading.result(ANSWER_LIMIT_S)
        except TimeoutError:
            return unread(NO_ANSWER)

    def stop(self) -> None:
        """Sample the sensors for the last time, and end the thread."""
        self._stopped.set()
        self._requests.put(Future())  # wakes the thread
        self._thread.join(ANSWER_LIMIT_S)

    def _work(self, detect_sensors: Callable[[], DetectedSensors] | None, interval_s: float) -> None:
        try:
            self._measure(Meter((detect_sensors or detect)()), interval_s)
        except Exception as error:  # no failure of a meter may end a run
            self._final_reading = partial(unread, f"A meter failed. Received: {error!r}. Please report it.")
        finally:
            self._ready.set()

    def _measure(self, meter: Meter, interval_s: float) -> None:
        self._ready.set()
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                self._requests.get(timeout=interval_s).set_result(meter.read())
            meter.sample()
        meter.stop()
        self._final_reading = meter.read


@contextlib.contextmanager
def measure(sensors: DetectedSensors | None = None, interval_s: float = INTERVAL_S) -> Iterator[HostMeter]:
    """Measure this host in the block; the meter may be read in the block and after it.

    Args:
        sensors: the sensors to read; all of this host's by default.
        interval_s: the time between two samples.
    """
    meter = HostMeter(None if sensors is None else (lambda: sensors), interval_s)
    meter.wait()
    try:
        yield meter
    finally:
        meter.stop()
