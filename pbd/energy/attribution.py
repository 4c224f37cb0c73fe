"""Attribution of a host's energy to its workers in equal parts, and within a worker to its activities."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbd.energy.readings import Reading


@dataclass(frozen=True)
class Activity:
    """A time in which a worker trained one block; the blocks of a group are activities at the same time."""

    worker: int
    start_s: float
    """Seconds since the epoch."""
    end_s: float


@dataclass(frozen=True)
class Attribution:
    """Joules; each is `None` if the host was not measured for nearly all of the time."""

    activities_j: tuple[float | None, ...]
    """Joules of each activity, in the order passed."""
    busy_j: Mapping[int, float | None]
    """Joules of each worker during its activities."""
    idle_j: Mapping[int, float | None]
    """Joules of each worker at other times."""


def attribute(reading: Reading, activities: Sequence[Activity], workers: Sequence[int]) -> Attribution:
    """Attribute the energy of one host; the parts add up to the reading's total.

    At every time, each worker, busy or idle, gets an equal part of the host's power, since no meter distinguishes
    workers; each activity of a worker at that time gets an equal part of the worker's.

    Args:
        reading: the reading of the host, for the time to attribute (see `Reading.of_host` and `Reading.between`).
        activities: the activities of the host's workers; parts outside of the reading get no energy.
        workers: all workers of the host.

    Example:
        >>> result = attribute(whole.between(began_s, ended_s), [Activity(0, began_s, began_s + 9.0)], workers=[0, 1])
    """
    if reading.total_j is None:
        return Attribution((None,) * len(activities), dict.fromkeys(workers), dict.fromkeys(workers))
    activities_j, busy_j, idle_j = [0.0] * len(activities), dict.fromkeys(workers, 0.0), dict.fromkeys(workers, 0.0)
    start_s, end_s = reading.started_s, reading.ended_s
    # Between two consecutive starts or ends, the set of activities is constant.
    times = {start_s, end_s, *(time_s for activity in activities for time_s in (activity.start_s, activity.end_s))}
    for begin, end in itertools.pairwise(sorted(time_s for time_s in times if start_s <= time_s <= end_s)):
        part_j = (reading.joules_at(end) - reading.joules_at(begin)) / len(workers)
        active = defaultdict(list)
        for number, activity in enumerate(activities):
            if activity.start_s <= begin and end <= activity.end_s:
                active[activity.worker].append(number)
        for worker in workers:
            (busy_j if active[worker] else idle_j)[worker] += part_j
            for number in active[worker]:
                activities_j[number] += part_j / len(active[worker])
    measured = (reading.covers(activity.start_s, activity.end_s) for activity in activities)
    measured_j = tuple(joules if whole else None for joules, whole in zip(activities_j, measured, strict=True))
    if not reading.covers(start_s, end_s):
        return Attribution(measured_j, dict.fromkeys(workers), dict.fromkeys(workers))
    return Attribution(measured_j, busy_j, idle_j)
