"""The meter of this host in a thread of its own: what fails or hangs there costs joules, never what is measured."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from pbd.energy.finding import DetectedSensors, find, host_identity
from pbd.energy.meter import Meter
from pbd.energy.readings import Reading

INTERVAL_S = 1.0
PATIENCE_S = 5.0
"""How long an answer is waited for: a driver can hang."""


def unread(*notes: str) -> Reading:
    """Return a reading of this host without any device: another process reads them, or none does."""
    now_s = time.time()
    return Reading(now_s, now_s, (), (host_identity(),), notes)


class NoMeter:
    """In the place of a meter where another process measures the host: it tells which host that is."""

    def read(self) -> Reading:
        """Return a reading without any device."""
        return unread()


class HostMeter:
    """Measures this host from now on; threads may share it.

    Args:
        find: returns what is measured, all that can be by default.
        interval_s: between two readings of the sensors.
    """

    def __init__(self, find: Callable[[], DetectedSensors] | None = None, interval_s: float = INTERVAL_S) -> None:
        self._questions: queue.SimpleQueue[Future[Reading]] = queue.SimpleQueue()
        self._ready, self._stopped = threading.Event(), threading.Event()
        self._afterwards: Callable[[], Reading] = unread
        self._thread = threading.Thread(target=self._work, args=(find, interval_s), name="energy", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until it measures, or can be seen not to."""
        self._ready.wait(PATIENCE_S)

    def read(self) -> Reading:
        """Return what was spent from the beginning until now, or until it was stopped; if it hangs or failed, that."""
        if not self._thread.is_alive():
            return self._afterwards()
        answer: Future[Reading] = Future()
        self._questions.put(answer)
        try:
            return answer.result(PATIENCE_S)
        except TimeoutError:
            return unread(f"A meter did not answer for {PATIENCE_S:.0f} s. Look after its driver: nvidia-smi, dmesg.")

    def stop(self) -> None:
        """Read every sensor for the last time."""
        self._stopped.set()
        self._questions.put(Future())  # so that it need not sleep to the end
        self._thread.join(PATIENCE_S)

    def _work(self, given: Callable[[], DetectedSensors] | None, interval_s: float) -> None:
        try:
            self._measure(Meter((given or find)()), interval_s)
        except Exception as error:  # whatever it is, the run is worth more
            self._afterwards = partial(unread, f"A meter failed. Received: {error!r}. Please report it.")
        finally:
            self._ready.set()

    def _measure(self, meter: Meter, interval_s: float) -> None:
        self._ready.set()
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                self._questions.get(timeout=interval_s).set_result(meter.read())
            meter.sample()
        meter.stop()
        self._afterwards = meter.read


@contextlib.contextmanager
def measure(finding: DetectedSensors | None = None, interval_s: float = INTERVAL_S) -> Iterator[HostMeter]:
    """Measure this host while the block runs; the meter can be read within it and after it.

    Args:
        finding: what is measured; by default all that can be.
        interval_s: between two readings of the sensors.
    """
    meter = HostMeter(finding and (lambda: finding), interval_s)
    meter.wait()
    try:
        yield meter
    finally:
        meter.stop()
