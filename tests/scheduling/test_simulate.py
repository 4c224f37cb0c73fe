"""Replays: what workers would do on a table of costs, and a bound that none can beat."""

import itertools
import random

import pytest

from pbd.errors import UsageError
from pbd.records import Assignment, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import SCHEDULERS, round_robin
from pbd.scheduling.simulate import Span, lower_bound_s, replay
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast

TASKS = [make_task(at) for at in range(4)]
PREFIX_S = {task.key: 1.0 + at for at, task in enumerate(TASKS)}
BLOCK_S = dict.fromkeys(PREFIX_S, 5.0)


def test_replay_gives_busy_and_idle_time_speedup_and_efficiency() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, False, "test")
    times = replay(round_robin(TASKS, costs, 2), costs)
    assert times.busy_s == (14.0, 16.0)
    assert times.idle_s == (2.0, 0.0)
    assert times.makespan_s == 16.0
    assert times.speedup == pytest.approx(30 / 16)
    assert times.efficiency == pytest.approx(30 / 32)


def test_grouped_speedup_is_against_one_worker_that_groups_too() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, True, "test")
    times = replay(round_robin(TASKS, costs, 2), costs)
    assert times.busy_s == (13.0, 14.0)
    assert times.speedup == pytest.approx(24 / 14)


def test_two_groups_of_a_worker_pay_their_prefixes_one_after_the_other() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, True, "test")
    queue = (TaskGroup((TASKS[0], TASKS[1])), TaskGroup((TASKS[2], TASKS[3])))
    assert replay(Assignment("by hand", (queue,), (0.0,)), costs).busy_s == (12.0 + 14.0,)


def test_the_timeline_says_who_trains_what_when() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, False, "test")
    groups = [TaskGroup((task,)) for task in TASKS]
    assignment = Assignment("by hand", ((groups[0],), ()), (0.0, 0.0), pool=tuple(groups[1:]))
    assert replay(assignment, costs).timeline == (
        (Span(groups[0], 0.0, 6.0), Span(groups[2], 6.0, 14.0)),
        (Span(groups[1], 0.0, 7.0), Span(groups[3], 7.0, 16.0)),
    )


def test_of_workers_that_come_free_together_the_first_takes_the_next() -> None:
    costs = TaskCosts(dict.fromkeys(PREFIX_S, 0.0), BLOCK_S, False, "test")
    pool = tuple(TaskGroup((task,)) for task in TASKS)
    times = replay(Assignment("by hand", ((), (), ()), (0.0,) * 3, pool=pool), costs)
    assert [[span.group.tasks[0].layer.index for span in spans] for spans in times.timeline] == [[0, 3], [1], [2]]
    assert times.busy_s == (10.0, 5.0, 5.0)


def test_a_worker_that_nothing_was_left_for_is_idle_throughout() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, False, "test")
    pool = (TaskGroup((TASKS[0],)),)
    times = replay(Assignment("by hand", ((), ()), (0.0, 0.0), pool=pool), costs)
    assert (times.busy_s, times.idle_s, times.efficiency) == ((6.0, 0.0), (0.0, 6.0), 0.5)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("grouped", [True, False])
def test_a_replay_on_the_same_costs_is_the_prediction(name: str, grouped: bool) -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, grouped, "test")
    assignment = SCHEDULERS[name](TASKS, costs, 3)
    assert replay(assignment, costs).busy_s == pytest.approx(assignment.predicted_load_s)


def test_an_empty_assignment_replays_to_nothing() -> None:
    costs = TaskCosts({}, {}, False, "test")
    times = replay(round_robin([], costs, 2), costs)
    assert (times.makespan_s, times.idle_s, times.speedup) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("grouped", [True, False])
def test_no_assignment_beats_the_lower_bound(grouped: bool) -> None:
    rng = random.Random(7)
    reached = 0
    for _ in range(40):
        tasks = [make_task(at) for at in range(rng.randint(1, 5))]
        prefix_s, block_s = ({task.key: float(rng.randint(0, 9)) for task in tasks} for _ in range(2))
        costs = TaskCosts(prefix_s, block_s, grouped, "random")
        workers = rng.randint(1, 4)
        makespans = []
        for owners in itertools.product(range(workers), repeat=len(tasks)):
            shares = [[t for t, owner in zip(tasks, owners, strict=True) if owner == w] for w in range(workers)]
            makespans.append(max(costs.load_s(share) for share in shares))
        bound = lower_bound_s(tasks, costs, workers)
        assert bound <= min(makespans) + 1e-9
        reached += bound >= min(makespans) - 1e-9
    assert reached >= 10, "a bound that is hardly ever reached is of little use"


def test_the_grouped_bound_counts_a_prefix_for_each_busy_worker() -> None:
    costs = TaskCosts(dict.fromkeys(PREFIX_S, 6.0), BLOCK_S, True, "test")
    assert lower_bound_s(TASKS, costs, 2) == (20 + 2 * 6) / 2


def test_the_bound_of_no_tasks_is_zero_and_of_no_workers_an_error() -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, True, "test")
    assert lower_bound_s([], costs, 2) == 0
    with pytest.raises(UsageError, match="Received: 0"):
        lower_bound_s(TASKS, costs, 0)
