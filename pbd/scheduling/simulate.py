"""Replay an assignment on a table of costs: what each worker would do, without doing it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pbd.errors import UsageError
from pbd.records import Assignment, BlockTask, TaskGroup
from pbd.scheduling.cost_model import LayerCosts
from pbd.scheduling.dispatch import Dispatcher


@dataclass(frozen=True)
class Span:
    """One group on one worker, from when to when, in seconds since the block phase began."""

    group: TaskGroup
    started_s: float
    ended_s: float


@dataclass(frozen=True)
class Replay:
    """Predicted times of the block phase, in seconds; moving data and scoring blocks are not in them."""

    timeline: tuple[tuple[Span, ...], ...]
    """For each worker, what it trains when."""
    one_worker_s: float
    """What one worker would need for every task, grouped likewise (so not the paper's scheme, if grouped)."""

    @property
    def busy_s(self) -> tuple[float, ...]:
        """For each worker, the seconds it trains; it never waits between two groups."""
        return tuple(spans[-1].ended_s if spans else 0.0 for spans in self.timeline)

    @property
    def makespan_s(self) -> float:
        """Seconds until the last worker is done."""
        return max(self.busy_s, default=0.0)

    @property
    def idle_s(self) -> tuple[float, ...]:
        """For each worker, the seconds it waits for the last one."""
        return tuple(self.makespan_s - busy_s for busy_s in self.busy_s)

    @property
    def speedup(self) -> float:
        """How many times faster than one worker; 1 where there is nothing to do."""
        return self.one_worker_s / self.makespan_s if self.makespan_s else 1.0

    @property
    def efficiency(self) -> float:
        """Speedup per worker."""
        return self.speedup / max(1, len(self.busy_s))


def replay(assignment: Assignment, costs: LayerCosts) -> Replay:
    """Return the times of an assignment if every group took what `costs` says.

    The costs need not be those that the assignment was made from: a plan from estimates may be replayed on
    measured times. Of workers that come free at the same time, the first takes the next group.
    """
    dispatcher = Dispatcher(assignment)
    timeline: list[list[Span]] = [[] for _ in assignment.queues]
    free = [(0.0, worker) for worker in range(len(timeline))]
    while free:
        now_s, worker = heapq.heappop(free)
        group = dispatcher.take(worker)
        if group is not None:
            timeline[worker].append(Span(group, now_s, now_s + costs.load_s(group.tasks)))
            heapq.heappush(free, (timeline[worker][-1].ended_s, worker))
    tasks = [task for group in assignment.groups for task in group.tasks]
    return Replay(timeline=tuple(map(tuple, timeline)), one_worker_s=costs.load_s(tasks))


def lower_bound_s(tasks: Sequence[BlockTask], costs: LayerCosts, num_workers: int) -> float:
    """Return seconds that no assignment of these tasks, contiguous or not, can beat.

    It is the larger of the longest task and the mean load per worker. Ungrouped, the mean is the total over the
    workers. Grouped, k busy workers pay for k prefixes, which are at least the deepest and the k - 1 cheapest;
    the bound is the best that any k can do.

    Raises:
        UsageError: `num_workers` is below 1.
    """
    if num_workers < 1:
        raise UsageError(f"the number of workers must be at least 1. Received: {num_workers}. Give at least one.")
    if not tasks:
        return 0.0
    longest_s = max(costs.task_s(task) for task in tasks)
    at_once = min(len(tasks), num_workers)
    if not costs.grouped:
        return max(longest_s, costs.load_s(tasks) / at_once)
    cheapest_s = sorted(costs.prefix_s[task.layer.name] for task in tasks)
    work_s = costs.load_s(tasks)
    mean_s = min((work_s + sum(cheapest_s[: busy - 1])) / busy for busy in range(1, at_once + 1))
    return max(longest_s, mean_s)
