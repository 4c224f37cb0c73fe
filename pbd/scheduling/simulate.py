"""Simulation of an assignment on a cost table: the timeline of each worker, without training."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pbd.errors import UsageError
from pbd.records import Assignment, BlockTask, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.dispatch import Dispatcher


@dataclass(frozen=True)
class Span:
    """The training of one group on one worker, in seconds since the start of the block phase."""

    group: TaskGroup
    started_s: float
    ended_s: float


@dataclass(frozen=True)
class Replay:
    """Predicted times of the block phase, in seconds, without moving data."""

    timeline: tuple[tuple[Span, ...], ...]
    """The spans of each worker, in order."""
    one_worker_s: float
    """The seconds of one worker for all tasks, as one group if the costs are grouped (unlike the paper's scheme)."""

    @property
    def busy_s(self) -> tuple[float, ...]:
        """The busy seconds of each worker; it never waits between two groups."""
        return tuple(spans[-1].ended_s if spans else 0.0 for spans in self.timeline)

    @property
    def makespan_s(self) -> float:
        """The seconds until the last worker finishes."""
        return max(self.busy_s, default=0.0)

    @property
    def idle_s(self) -> tuple[float, ...]:
        """The seconds that each worker waits for the last one."""
        return tuple(self.makespan_s - busy_s for busy_s in self.busy_s)

    @property
    def speedup(self) -> float:
        """The ratio of one worker's time to the makespan; 1 without tasks."""
        return self.one_worker_s / self.makespan_s if self.makespan_s else 1.0

    @property
    def efficiency(self) -> float:
        """The speedup per worker."""
        return self.speedup / max(1, len(self.busy_s))


def replay(assignment: Assignment, costs: TaskCosts) -> Replay:
    """Return the times of an assignment if every group takes the time in `costs`.

    The costs may differ from those that the assignment was made from: a plan made from estimates can be replayed on
    measured times. If several workers become available at once, the one with the lowest number takes the next group.
    """
    dispatcher = Dispatcher.of(assignment)
    timeline: list[list[Span]] = [[] for _ in assignment.queues]
    available = [(0.0, worker) for worker in range(len(timeline))]
    while available:
        now_s, worker = heapq.heappop(available)
        group = dispatcher.take(worker)
        if group is not None:
            timeline[worker].append(Span(group, now_s, now_s + costs.load_s(group.tasks)))
            heapq.heappush(available, (timeline[worker][-1].ended_s, worker))
    tasks = [task for group in assignment.groups for task in group.tasks]
    return Replay(timeline=tuple(map(tuple, timeline)), one_worker_s=costs.load_s(tasks))


def lower_bound_s(tasks: Sequence[BlockTask], costs: TaskCosts, num_workers: int) -> float:
    """Return a lower bound on the makespan of any assignment of these tasks, contiguous or not.

    It is the larger of the longest task and the mean load per worker. Ungrouped, the mean is the total over the
    workers. Grouped, k busy workers pay for k prefixes, which cost at least the deepest and the k - 1 cheapest; the
    bound is the minimum over k.

    Raises:
        UsageError: `num_workers` is less than 1.
    """
    if num_workers < 1:
        raise UsageError(f"the number of workers must be at least 1. Received: {num_workers}. Give at least one.")
    if not tasks:
        return 0.0
    longest_s = max(costs.task_s(task) for task in tasks)
    at_once = min(len(tasks), num_workers)
    if not costs.grouped:
        return max(longest_s, costs.load_s(tasks) / at_once)
    cheapest_s = sorted(costs.prefix_s[task.key] for task in tasks)
    work_s = costs.load_s(tasks)
    mean_s = min((work_s + sum(cheapest_s[: busy - 1])) / busy for busy in range(1, at_once + 1))
    return max(longest_s, mean_s)
