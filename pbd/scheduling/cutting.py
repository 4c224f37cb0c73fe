"""Splitting of an assignment's groups so that each fits into a worker's memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from pbd.records import Assignment, BlockTask, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.simulate import replay

Fits = Callable[[Sequence[BlockTask]], bool]
"""Whether tasks can be trained as one group. It must be monotone: a subset of tasks that fit also fits."""


def cut(assignment: Assignment, costs: TaskCosts, fits: Fits) -> Assignment:
    """Return the assignment with each group that does not fit split into the fewest segments of its layers that fit.

    A single layer that does not fit becomes a group. The loads are predicted again if a group was split.
    """

    def split(groups: Iterable[TaskGroup]) -> tuple[TaskGroup, ...]:
        return tuple(part for group in groups for part in _parts(group, costs, fits))

    queues, pool = tuple(map(split, assignment.queues)), split(assignment.pool)
    if len(pool) + sum(map(len, queues)) == len(assignment.groups):
        return assignment
    changed = dataclasses.replace(assignment, queues=queues, pool=pool)
    return dataclasses.replace(changed, predicted_load_s=replay(changed, costs).busy_s)


def runs(tasks: Sequence[BlockTask], fits: Fits) -> Iterator[tuple[BlockTask, ...]]:
    """Yield the fewest segments of consecutive tasks that fit. Greedy is optimal, because `fits` is monotone."""
    run: tuple[BlockTask, ...] = ()
    for task in tasks:
        if run and not fits((*run, task)):
            yield run
            run = ()
        run = (*run, task)
    if run:
        yield run


def _parts(group: TaskGroup, costs: TaskCosts, fits: Fits) -> Iterator[TaskGroup]:
    parts = list(runs(group.tasks, fits))
    if len(parts) == 1:
        yield group
        return
    for part in parts:
        yield TaskGroup(part, predicted_s=costs.load_s(part))
