"""How long a step takes, once it has been traced, and how much longer the first time."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from pbd.system import watchdog

WARM_UP = 1
FEWEST, MOST = 4, 12
"""Steps that are timed behind the warm-up."""
ENOUGH_S = 0.4
"""No more steps are timed once so many seconds have been, and the fewest are done."""


@dataclass(frozen=True)
class StepTime:
    """How long something takes, in seconds: typically, and how much longer the first time."""

    typical_s: float
    once_s: float

    def minus(self, other: "StepTime") -> "StepTime":
        """Return what is left without the other, at least 0."""
        return StepTime(max(0.0, self.typical_s - other.typical_s), max(0.0, self.once_s - other.once_s))


def time_step(step: Callable[[], object]) -> StepTime:
    """Time a step that traces itself the first time: the median of a few behind the warm-up, which outliers miss."""
    first_s = seconds(step)
    watchdog.touch()
    for _ in range(WARM_UP):
        step()
    taken: list[float] = []
    while len(taken) < FEWEST or (len(taken) < MOST and sum(taken) < ENOUGH_S):
        taken.append(seconds(step))
    typical_s = statistics.median(taken)
    return StepTime(typical_s, max(0.0, first_s - typical_s))


def seconds(step: Callable[[], object]) -> float:
    """Return how long a step takes, once."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
