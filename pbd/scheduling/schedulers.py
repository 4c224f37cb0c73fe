"""Schedulers: pure functions from tasks, costs and a number of workers to an assignment, and their table."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence

from binpacking import to_constant_bin_number

from pbd.errors import UsageError, unknown_name
from pbd.records import Assignment, LayerTask, TaskGroup
from pbd.scheduling.cost_model import LayerCosts

Scheduler = Callable[[Sequence[LayerTask], LayerCosts, int], Assignment]


def round_robin(tasks: Sequence[LayerTask], costs: LayerCosts, num_workers: int) -> Assignment:
    """Deal the tasks out in index order, whatever they cost: the paper's first scheme."""
    _check_workers(num_workers)
    ordered = _by_index(tasks)
    return _assignment("round_robin", [ordered[worker::num_workers] for worker in range(num_workers)], costs)


def wfd(tasks: Sequence[LayerTask], costs: LayerCosts, num_workers: int) -> Assignment:
    """Give each task, longest first, to the least loaded worker (worst fit decreasing): the paper's bin packing.

    The weights are the tasks' own times, also where a group would share its prefix. `binpacking` sorts stably
    and fills the first of equally loaded bins, so tasks handed to it in index order give one answer.
    """
    _check_workers(num_workers)
    ordered = _by_index(tasks)
    weights = _telling(costs, ordered)
    bins = to_constant_bin_number({at: weights.task_s(task) for at, task in enumerate(ordered)}, num_workers)
    return _assignment("wfd", [[ordered[at] for at in chosen] for chosen in bins], costs)


def contiguous(tasks: Sequence[LayerTask], costs: LayerCosts, num_workers: int) -> Assignment:
    """Cut the layers, in index order, into runs whose largest load is the least possible (exact).

    Among the cuts with that makespan it takes one with the least load in all (so grouped tasks pay for few
    prefixes, and workers that could not help stay free), and then the earliest. Takes O(n^2 * workers).
    """
    _check_workers(num_workers)
    ordered = _by_index(tasks)
    loads_s = _telling(costs, ordered).run_loads_s(ordered)
    makespan_s, _ = _cut(loads_s, num_workers, max, math.inf)
    _, ends = _cut(loads_s, num_workers, operator.add, makespan_s)
    queues = [ordered[start:end] for start, end in itertools.pairwise([0, *ends])]
    return _assignment("contiguous", queues + [[]] * (num_workers - len(queues)), costs)


def _cut(
    loads_s: list[list[float]], num_workers: int, join: Callable[[float, float], float], limit_s: float
) -> tuple[float, list[int]]:
    """Return the least value of `join` over the runs' loads, none above `limit_s`, and where the runs end."""
    count = len(loads_s)
    # best[end] holds the least value for the first `end` tasks in a given number of runs, and those runs' ends.
    best: list[tuple[float, list[int]]] = [(0.0, [])] + [(math.inf, [])] * count
    answer = best[count]
    for _ in range(min(count, num_workers)):
        longer: list[tuple[float, list[int]]] = [(math.inf, [])] * (count + 1)
        for end in range(1, count + 1):
            for start in range(end):
                load_s = loads_s[start][end - start - 1]
                value = join(best[start][0], load_s) if load_s <= limit_s else math.inf
                if value < longer[end][0]:
                    longer[end] = (value, [*best[start][1], end])
        best = longer
        if best[count][0] < answer[0]:
            answer = best[count]
    return answer


def _telling(costs: LayerCosts, tasks: Sequence[LayerTask]) -> LayerCosts:
    """Return the costs, or equal ones where all are zero: a run of no epochs still has blocks to score."""
    if any(costs.task_s(task) for task in tasks):
        return costs
    return dataclasses.replace(costs, block_s=dict.fromkeys(costs.block_s, 1.0))


def _by_index(tasks: Sequence[LayerTask]) -> list[LayerTask]:
    return sorted(tasks, key=lambda task: task.index)


def _check_workers(num_workers: int) -> None:
    if num_workers < 1:
        raise UsageError(
            f"the number of workers must be at least 1. Received: {num_workers}. Give --workers 1 or more."
        )


def _assignment(name: str, queues: Sequence[Sequence[LayerTask]], costs: LayerCosts) -> Assignment:
    """Make one group of each queue where groups share a prefix, else one group per task."""
    return Assignment(
        scheduler=name,
        queues=tuple(_groups(queue, costs.grouped) for queue in queues),
        predicted_load_s=tuple(costs.load_s(queue) for queue in queues),
    )


def _groups(queue: Sequence[LayerTask], grouped: bool) -> tuple[TaskGroup, ...]:
    if grouped and queue:
        return (TaskGroup(tuple(_by_index(queue))),)
    return tuple(TaskGroup((task,)) for task in queue)


SCHEDULERS: dict[str, Scheduler] = {"round_robin": round_robin, "wfd": wfd, "contiguous": contiguous}


def choose(name: str, grouped: bool) -> Scheduler:
    """Return the scheduler of that name; `auto` is contiguous for groups, else wfd.

    Raises:
        UsageError: no scheduler has that name (the nearest one is named).

    Example:
        >>> choose("auto", grouped=True).__name__
        'contiguous'
    """
    if name == "auto":
        name = "contiguous" if grouped else "wfd"
    if name not in SCHEDULERS:
        raise UsageError(unknown_name("scheduler", name, ["auto", *SCHEDULERS]))
    return SCHEDULERS[name]
