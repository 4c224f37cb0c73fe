"""Schedulers: pure functions from tasks, costs and a number of workers to an assignment."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence

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
    predicted = [dataclasses.replace(one, predicted_load_s=replay(one, costs).busy_s) for one in candidates]
    return min(predicted, key=lambda one: one.predicted_makespan_s)


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
    loads_s = _usable_costs(costs, ordered).run_loads_s(ordered)
    makespan_s, _ = _cut(loads_s, most, max, math.inf)
    _, ends = _cut(loads_s, most, operator.add, makespan_s)
    return [ordered[start:end] for start, end in itertools.pairwise([0, *ends])]


def _cut(
    loads_s: list[list[float]], num_workers: int, join: Callable[[float, float], float], limit_s: float
) -> tuple[float, list[int]]:
    """Return the least value of `join` over the loads of the segments, none above `limit_s`, and their ends.

    Dynamic programming over the number of segments and the number of tasks.
    """
    count = len(loads_s)
    # best[end]: the least value for the first `end` tasks in the current number of segments, and their ends.
    unreachable: tuple[float, list[int]] = (math.inf, [])
    best = [(0.0, list[int]()), *[unreachable] * count]
    answer = best[count]
    for _ in range(min(count, num_workers)):
        longer = [unreachable] * (count + 1)
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
