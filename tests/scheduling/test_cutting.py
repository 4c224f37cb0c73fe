"""Groups are cut where they do not fit, and nowhere else."""

import pytest

from pbd.records import Assignment, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.cutting import cut, runs
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast
TASKS = tuple(make_task(at) for at in range(6))
KEYS = [task.key for task in TASKS]
COSTS = TaskCosts(dict.fromkeys(KEYS, 10.0), dict.fromkeys(KEYS, 1.0), grouped=True, source="given")


def sizes(groups: tuple[TaskGroup, ...]) -> list[int]:
    return [len(group.tasks) for group in groups]


@pytest.mark.parametrize(("most", "expected"), [(6, [6]), (4, [4, 2]), (2, [2, 2, 2]), (1, [1] * 6), (0, [1] * 6)])
def test_runs_are_as_long_as_fits_and_one_layer_is_always_tried(most: int, expected: list[int]) -> None:
    found = list(runs(TASKS, lambda tasks: len(tasks) <= most))
    assert [len(run) for run in found] == expected
    assert [task for run in found for task in run] == list(TASKS)


def test_only_what_does_not_fit_is_cut_and_what_comes_out_is_predicted_anew() -> None:
    long, short, pooled = TaskGroup(TASKS[:3], 13.0), TaskGroup(TASKS[3:4], 11.0), TaskGroup(TASKS[4:], 12.0)
    given = Assignment("pull", ((long,), (short,)), (13.0, 23.0), pool=(pooled,))
    found = cut(given, COSTS, lambda tasks: len(tasks) <= 2)
    assert [sizes(queue) for queue in found.queues] == [[2, 1], [1]]
    assert [group.predicted_s for group in found.queues[0]] == [12.0, 11.0]
    assert (found.queues[1], found.pool) == ((short,), (pooled,)), "what fits is left as it was"
    assert found.predicted_load_s == (23.0, 23.0)
    assert cut(given, COSTS, lambda tasks: True) is given
