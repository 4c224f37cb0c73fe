"""Schedulers: pure functions from tasks, costs and a number of workers to an assignment."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from binpacking import to_constant_bin_number

from pbd.errors import UsageError, unknown_name
from pbd.records import Assignment, BlockTask, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.simulate import replay

GROUPS_PER_WORKER = (2.0, 1.5, 1.0)
"""The candidate numbers of groups per worker for dynamic schedulers with grouped layers."""

Scheduler = Callable[[Sequence[BlockTask], TaskCosts, int], Assignment]


def round_robin(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> Assignment:
    """Assign the tasks in index order, regardless of cost: the paper's first scheme."""
    _check_workers(num_workers)
    ordered = _by_index(tasks)
    return _assignment("round_robin", [ordered[worker::num_workers] for worker in range(num_workers)], costs)


def wfd(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> Assignment:
    """Give each task, longest first, to the least loaded worker (worst fit decreasing): the paper's bin packing.

    The weights are the times of single tasks, even if a group would share its prefix. `binpacking` sorts stably and
    fills the first of equally loaded bins, so tasks in index order give a deterministic result.
    """
    _check_workers(num_workers)
    ordered = _by_index(tasks)
    weights = _usable_costs(costs, ordered)
    bins = to_constant_bin_number({at: weights.task_s(task) for at, task in enumerate(ordered)}, num_workers)
    return _assignment("wfd", [[ordered[at] for at in chosen] for chosen in bins], costs)


def contiguous(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> Assignment:
    """Partition the layers, in index order, into segments of minimal makespan (exact).

    Among partitions with that makespan, the one with the least total load is chosen (so few prefixes are repeated, and
    workers that cannot reduce the makespan get no tasks), then the first. Time: O(n^2 * workers).
    """
    _check_workers(num_workers)
    queues = _runs(tasks, costs, num_workers)
    return _assignment("contiguous", queues + [[]] * (num_workers - len(queues)), costs)


def pull(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> Assignment:
    """Put all groups into one pool, longest first; an available worker takes the next group.

    This is list scheduling (Graham 1969): it tolerates wrong predictions, and workers may join and leave. Grouped, each
    segment pays for its own prefix, so the number of segments (`GROUPS_PER_WORKER`) minimises the predicted makespan.
    """
    _check_workers(num_workers)
    nothing = ((),) * num_workers
    return _shortest([Assignment("pull", nothing, (), pool=pool) for pool in _pools(tasks, costs, num_workers)], costs)


def work_stealing(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> Assignment:
    """Assign each group of `pull` to the least loaded worker; a worker with an empty queue takes from the others."""
    _check_workers(num_workers)
    weights = _usable_costs(costs, tasks)
    dealt = [_deal(pool, weights, num_workers) for pool in _pools(tasks, costs, num_workers)]
    return _shortest([Assignment("work_stealing", queues, (), steals=True) for queues in dealt], costs)


def _deal(pool: Sequence[TaskGroup], weights: TaskCosts, num_workers: int) -> tuple[tuple[TaskGroup, ...], ...]:
    queues: list[list[TaskGroup]] = [[] for _ in range(num_workers)]
    loads_s = [0.0] * num_workers
    for group in pool:
        worker = loads_s.index(min(loads_s))
        queues[worker].append(group)
        loads_s[worker] += weights.load_s(group.tasks)
    return tuple(map(tuple, queues))


def _shortest(candidates: Sequence[Assignment], costs: TaskCosts) -> Assignment:
    """Return the first assignment with the least predicted makespan, with its predicted loads."""
    predicted = [
        dataclasses.replace(assignment, predicted_load_s=replay(assignment, costs).busy_s) for assignment in candidates
    ]
    return min(predicted, key=lambda assignment: assignment.predicted_makespan_s)


def _pools(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> list[tuple[TaskGroup, ...]]:
    """Return the candidate pools: the layers cut into different numbers of groups, each pool longest group first."""
    weights = _usable_costs(costs, tasks)
    cuts = [[[task] for task in _by_index(tasks)]]
    if costs.grouped:
        cuts = [_runs(tasks, costs, math.ceil(ratio * num_workers)) for ratio in GROUPS_PER_WORKER]
    return [tuple(_group(run, costs) for run in sorted(runs, key=lambda run: -weights.load_s(run))) for runs in cuts]


def _runs(tasks: Sequence[BlockTask], costs: TaskCosts, most: int) -> list[list[BlockTask]]:
    """Cut the layers, in index order, into at most that many segments (see `contiguous`)."""
    ordered = _by_index(tasks)
    loads_s = np.full((len(ordered), len(ordered) + 1), np.inf)  # of the tasks from `start` to before `end`
    for start, loads in enumerate(_usable_costs(costs, ordered).run_loads_s(ordered)):
        loads_s[start, start + 1 :] = loads
    makespan_s, _ = _cut(loads_s, most, np.maximum)
    _, bounds = _cut(np.where(loads_s <= makespan_s, loads_s, np.inf), most, np.add)
    return [ordered[start:end] for start, end in itertools.pairwise(bounds)]


def _cut(loads_s: np.ndarray, most: int, join: np.ufunc) -> tuple[float, list[int]]:
    """Return the least value of `join` over the loads of at most `most` segments, and where these begin and end.

    Dynamic programming over the number of segments and the number of tasks.

    Args:
        loads_s: the load of each segment by its start and its end, (tasks, tasks + 1); infinite if it is not allowed.
        most: the largest number of segments.
        join: `np.maximum` or `np.add`.
    """
    count = len(loads_s)
    least = np.full(count + 1, np.inf)  # for the first `end` tasks in the present number of segments
    least[0] = 0.0
    answer = float(least[count]), [0]
    starts = list[np.ndarray]()  # of the last segment, by its end
    for _ in range(min(count, most)):
        values = join(least[:-1, None], loads_s)
        starts.append(np.argmin(values, axis=0))
        least = np.min(values, axis=0)
        if least[count] < answer[0]:
            answer = float(least[count]), _bounds(starts, count)
    return answer


def _bounds(starts: Sequence[np.ndarray], count: int) -> list[int]:
    """Return where segments begin and end, from the starts of the last one of each number of segments."""
    bounds = [count]
    for start in reversed(starts):
        bounds.append(int(start[bounds[-1]]))
    return bounds[::-1]


def _usable_costs(costs: TaskCosts, tasks: Sequence[BlockTask]) -> TaskCosts:
    """Return the costs; equal ones if all are zero, because a run without epochs still has blocks to score."""
    if any(costs.task_s(task) for task in tasks):
        return costs
    return dataclasses.replace(costs, block_s=dict.fromkeys(costs.block_s, 1.0))


def _by_index(tasks: Sequence[BlockTask]) -> list[BlockTask]:
    return sorted(tasks, key=lambda task: (task.layer.index, task.design))


def _check_workers(num_workers: int) -> None:
    if num_workers < 1:
        raise UsageError(
            f"the number of workers must be at least 1. Received: {num_workers}. Give --workers 1 or more."
        )


def _assignment(name: str, queues: Sequence[Sequence[BlockTask]], costs: TaskCosts) -> Assignment:
    """Make one group of each queue if the costs are grouped, else one group per task."""
    return Assignment(
        scheduler=name,
        queues=tuple(_groups(queue, costs) for queue in queues),
        predicted_load_s=tuple(costs.load_s(queue) for queue in queues),
    )


def _groups(queue: Sequence[BlockTask], costs: TaskCosts) -> tuple[TaskGroup, ...]:
    if costs.grouped and queue:
        return (_group(_by_index(queue), costs),)
    return tuple(_group([task], costs) for task in queue)


def _group(tasks: Sequence[BlockTask], costs: TaskCosts) -> TaskGroup:
    return TaskGroup(tuple(tasks), predicted_s=costs.load_s(tasks))


SCHEDULERS: dict[str, Scheduler] = {
    "round_robin": round_robin,
    "wfd": wfd,
    "contiguous": contiguous,
    "pull": pull,
    "work_stealing": work_stealing,
}


def choose(name: str, grouped: bool, elastic: bool = False) -> Scheduler:
    """Return the scheduler of that name; `auto` is pull for elastic workers, else contiguous for groups, else wfd.

    Args:
        name: A key of `SCHEDULERS`, or `auto`.
        grouped: Whether the tasks of a group share the forward pass of the teacher.
        elastic: Whether workers may join and leave.

    Raises:
        UsageError: No scheduler has that name (the message suggests the nearest name).

    Example:
        >>> choose("auto", grouped=True).__name__
        'contiguous'
    """
    if name == "auto":
        name = "pull" if elastic else "contiguous" if grouped else "wfd"
    if name not in SCHEDULERS:
        raise UsageError(unknown_name("scheduler", name, ["auto", *SCHEDULERS]))
    return SCHEDULERS[name]
