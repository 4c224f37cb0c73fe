"""The time of a step: its typical duration after tracing, and the extra duration of the first call."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from pbd.system import watchdog

WARM_UP = 1
MIN_STEPS, MAX_STEPS = 4, 12
"""Steps that are timed after the warm-up."""
ENOUGH_S = 0.4
"""Once the timed steps add up to this many seconds, and the minimum is reached, no more steps are timed."""


@dataclass(frozen=True)
class StepTime:
    """The duration of a step in seconds."""

    typical_s: float
    once_s: float
    """The additional duration of the first call, which traces the graph."""

    def minus(self, other: "StepTime") -> "StepTime":
        """Return the difference, at least 0."""
        return StepTime(max(0.0, self.typical_s - other.typical_s), max(0.0, self.once_s - other.once_s))


@dataclass(frozen=True)
class Deadline:
    """The time at which a calibration stops timing further steps."""

    at_s: float
    """The time in seconds of `time.monotonic`."""

    @classmethod
    def after(cls, seconds: float = math.inf) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def passed(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() >= self.at_s


def time_step(step: Callable[[], object]) -> StepTime:
    """Time a step whose first call traces a graph; the typical time is a median, so outliers have no effect."""
    first_s = seconds(step)
    watchdog.touch()
    for _ in range(WARM_UP):
        step()
    durations_s: list[float] = []
    while len(durations_s) < MIN_STEPS or (len(durations_s) < MAX_STEPS and sum(durations_s) < ENOUGH_S):
        durations_s.append(seconds(step))
    typical_s = statistics.median(durations_s)
    return StepTime(typical_s, max(0.0, first_s - typical_s))


def seconds(step: Callable[[], object]) -> float:
    """Return the duration of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
