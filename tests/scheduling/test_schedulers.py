"""Schedulers: each task once, the exact one exact, how ties are broken, and errors."""

import itertools
import math
import operator
import random
from collections.abc import Sequence
from typing import Any

import pytest

from pbd import config
from pbd.errors import UsageError
from pbd.records import Assignment, BlockTask
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import (
    GROUPS_PER_WORKER,
    SCHEDULERS,
    choose,
    contiguous,
    pull,
    round_robin,
    wfd,
    work_stealing,
)
from pbd.scheduling.simulate import Replay, lower_bound_s, replay
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast

EVERY_SCHEDULER = pytest.mark.parametrize("name", sorted(SCHEDULERS))
STATIC = pytest.mark.parametrize("name", ["contiguous", "round_robin", "wfd"])
AS_THEY_COME_FREE = pytest.mark.parametrize("name", ["pull", "work_stealing"])
BOTH_MODES = pytest.mark.parametrize("grouped", [True, False])


def random_instance(seed: int, count: int, grouped: bool) -> tuple[list[BlockTask], TaskCosts]:
    """Small whole numbers, so that ties are frequent; prefixes do not always grow (sibling branches)."""
    rng = random.Random(seed)
    tasks = [make_task(at) for at in range(count)]
    prefix_s = {task.key: float(task.layer.index + rng.randint(0, 3)) for task in tasks}
    block_s = {task.key: float(rng.randint(0, 6)) for task in tasks}
    return tasks, TaskCosts(prefix_s, block_s, grouped, "random")


def flat_costs(tasks: Sequence[BlockTask], seconds: float, grouped: bool = False) -> TaskCosts:
    keys = [task.key for task in tasks]
    return TaskCosts(dict.fromkeys(keys, 0.0), dict.fromkeys(keys, seconds), grouped, "flat")


def layout(assignment: Assignment) -> list[list[int]]:
    return [[task.layer.index for group in queue for task in group.tasks] for queue in assignment.queues]


def trained(times: Replay) -> list[list[int]]:
    return [[task.layer.index for span in spans for task in span.group.tasks] for spans in times.timeline]


def timed(seconds: Sequence[float]) -> tuple[list[BlockTask], TaskCosts]:
    tasks = [make_task(at) for at in range(len(seconds))]
    times = {task.key: one for task, one in zip(tasks, seconds, strict=True)}
    return tasks, TaskCosts(dict.fromkeys(times, 0.0), times, grouped=False, source="timed")


def all_cuts(tasks: list[BlockTask], num_workers: int) -> list[list[list[BlockTask]]]:
    """Every way to cut the tasks into at most that many runs."""
    count = len(tasks)
    return [
        [tasks[start:end] for start, end in itertools.pairwise([0, *inner, count])]
        for runs in range(1, min(count, num_workers) + 1)
        for inner in itertools.combinations(range(1, count), runs - 1)
    ]


def test_the_table_and_the_command_line_agree() -> None:
    assert {"auto", *SCHEDULERS} == set(config.SCHEDULERS)


@EVERY_SCHEDULER
@BOTH_MODES
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7, 12])
def test_every_task_is_assigned_once_with_the_load_it_costs(name: str, grouped: bool, num_workers: int) -> None:
    tasks, costs = random_instance(num_workers, 7, grouped)
    assignment = SCHEDULERS[name](tasks, costs, num_workers)
    assert assignment.scheduler == name
    assert len(assignment.queues) == len(assignment.predicted_load_s) == num_workers
    assert sorted(task.layer.index for group in assignment.groups for task in group.tasks) == list(range(7))
    assert sorted(itertools.chain(*trained(replay(assignment, costs)))) == list(range(7))
    for group in assignment.groups:
        assert group.predicted_s == pytest.approx(costs.load_s(group.tasks))


@STATIC
@BOTH_MODES
def test_the_predicted_load_is_what_the_queue_costs(name: str, grouped: bool) -> None:
    tasks, costs = random_instance(4, 7, grouped)
    assignment = SCHEDULERS[name](tasks, costs, 3)
    assert (assignment.pool, assignment.steals) == ((), False)
    for indices, load_s in zip(layout(assignment), assignment.predicted_load_s, strict=True):
        assert load_s == pytest.approx(costs.load_s([tasks[at] for at in indices]))


@STATIC
def test_grouped_tasks_of_a_worker_are_one_group_in_index_order(name: str) -> None:
    tasks, costs = random_instance(3, 9, grouped=True)
    for queue in SCHEDULERS[name](tasks, costs, 4).queues:
        assert len(queue) <= 1
        for group in queue:
            assert list(group.tasks) == sorted(group.tasks, key=lambda task: task.layer.index)


@EVERY_SCHEDULER
def test_ungrouped_tasks_are_groups_of_one(name: str) -> None:
    tasks, costs = random_instance(3, 9, grouped=False)
    assert [len(group.tasks) for group in SCHEDULERS[name](tasks, costs, 4).groups] == [1] * 9


@EVERY_SCHEDULER
@BOTH_MODES
def test_the_order_tasks_arrive_in_changes_nothing(name: str, grouped: bool) -> None:
    rng = random.Random(1)
    for seed in range(20):
        tasks, costs = random_instance(seed, 8, grouped)
        expected = SCHEDULERS[name](tasks, costs, 3)
        assert SCHEDULERS[name](rng.sample(tasks, len(tasks)), costs, 3) == expected


def test_ties_go_to_the_lower_index_and_the_lower_worker() -> None:
    tasks = [make_task(at) for at in range(6)]
    costs = flat_costs(tasks, 5.0)
    assert layout(wfd(tasks, costs, 3)) == [[0, 3], [1, 4], [2, 5]]
    assert layout(round_robin(tasks, costs, 3)) == [[0, 3], [1, 4], [2, 5]]
    assert layout(contiguous(tasks, costs, 3)) == [[0, 1], [2, 3], [4, 5]]


def test_wfd_runs_its_longest_task_first() -> None:
    tasks, costs = random_instance(5, 12, grouped=False)
    for queue in wfd(tasks, costs, 3).queues:
        times = [costs.load_s(group.tasks) for group in queue]
        assert times == sorted(times, reverse=True)


@BOTH_MODES
def test_contiguous_is_exact_and_then_pays_least_in_all(grouped: bool) -> None:
    for seed in range(60):
        tasks, costs = random_instance(seed, 1 + seed % 8, grouped)
        for num_workers in (1, 2, 3, 5):
            assignment = contiguous(tasks, costs, num_workers)
            loads = [[costs.load_s(run) for run in cut] for cut in all_cuts(tasks, num_workers)]
            least = min((max(cut), sum(cut)) for cut in loads)
            assert (assignment.predicted_makespan_s, sum(assignment.predicted_load_s)) == pytest.approx(least)
            assert list(itertools.chain(*layout(assignment))) == list(range(len(tasks)))


def first_cut(loads: list[list[float]], most: int, join: Any, limit: float = math.inf) -> tuple[float, list[int]]:
    """Return the least value and the first ends of segments with it, task by task: the reference of `contiguous`."""
    count, nothing = len(loads), (math.inf, list[int]())
    best = [(0.0, list[int]()), *[nothing] * count]
    answer = nothing
    for _ in range(min(count, most)):
        longer = [nothing] * (count + 1)
        for start, end in itertools.combinations(range(count + 1), 2):
            load = loads[start][end - start - 1]
            value = join(best[start][0], load) if load <= limit else math.inf
            if value < longer[end][0]:
                longer[end] = (value, [*best[start][1], end])
        best = longer
        answer = min(answer, best[count], key=lambda each: each[0])
    return answer


@BOTH_MODES
def test_contiguous_returns_the_first_of_equal_partitions(grouped: bool) -> None:
    for seed in range(60):
        tasks, costs = random_instance(seed, 1 + seed % 14, grouped)
        loads = [list(each) for each in costs.run_loads_s(tasks)]
        for num_workers in (1, 2, 4, 7):
            makespan_s, _ = first_cut(loads, num_workers, max)
            _, ends = first_cut(loads, num_workers, operator.add, makespan_s)
            expected = [list(range(start, end)) for start, end in itertools.pairwise([0, *ends])]
            assert [each for each in layout(contiguous(tasks, costs, num_workers)) if each] == expected


def test_contiguous_leaves_workers_free_that_could_not_help() -> None:
    # The last layer alone takes 11 s, and all three together no longer: a second worker would be wasted.
    tasks = [make_task(at) for at in range(3)]
    keys = [task.key for task in tasks]
    costs = TaskCosts(dict(zip(keys, (8.0, 9.0, 10.0), strict=True)), dict(zip(keys, (0, 0, 1), strict=True)), True, "")
    assert layout(contiguous(tasks, costs, 3)) == [[0, 1, 2], [], []]


@EVERY_SCHEDULER
@BOTH_MODES
def test_costs_of_zero_still_spread_the_tasks(name: str, grouped: bool) -> None:
    tasks = [make_task(at) for at in range(8)]
    assignment = SCHEDULERS[name](tasks, flat_costs(tasks, 0.0, grouped), 4)
    true = flat_costs(tasks, 1.0, grouped)  # whoever planned with zeros meets tasks that do take time
    assert [len(indices) for indices in trained(replay(assignment, true))] == [2, 2, 2, 2]
    assert assignment.predicted_makespan_s == 0


@EVERY_SCHEDULER
@BOTH_MODES
def test_designs_of_a_layer_are_tasks_of_their_own_in_any_order(name: str, grouped: bool) -> None:
    tasks = [make_task(at, design=design) for at in range(4) for design in ("decoupled_r1", "spatial_svd_r50")]
    costs = flat_costs(tasks, 1.0, grouped)
    assignment = SCHEDULERS[name](tasks, costs, 2)
    assert sorted(task.key for group in assignment.groups for task in group.tasks) == [task.key for task in tasks]
    assert SCHEDULERS[name](tasks[::-1], costs, 2) == assignment
    assert assignment.predicted_makespan_s == 4.0


@EVERY_SCHEDULER
@BOTH_MODES
def test_no_tasks_give_empty_queues(name: str, grouped: bool) -> None:
    assignment = SCHEDULERS[name]([], flat_costs([], 0.0, grouped), 2)
    assert assignment.queues == ((), ())
    assert assignment.groups == ()
    assert assignment.predicted_makespan_s == 0


@EVERY_SCHEDULER
@pytest.mark.parametrize("num_workers", [0, -2])
def test_too_few_workers_are_refused(name: str, num_workers: int) -> None:
    tasks, costs = random_instance(0, 3, grouped=False)
    with pytest.raises(UsageError, match=f"at least 1. Received: {num_workers}"):
        SCHEDULERS[name](tasks, costs, num_workers)


@AS_THEY_COME_FREE
@BOTH_MODES
def test_what_is_handed_out_is_longest_first_and_the_earlier_of_equals_first(name: str, grouped: bool) -> None:
    for seed in range(20):
        tasks, costs = random_instance(seed, 9, grouped)
        assignment = SCHEDULERS[name](tasks, costs, 2)
        for groups in [assignment.pool, *assignment.queues]:
            keys = [(-costs.load_s(group.tasks), group.tasks[0].layer.index) for group in groups]
            assert keys == sorted(keys)


@AS_THEY_COME_FREE
def test_grouped_layers_are_cut_into_a_few_runs_per_worker(name: str) -> None:
    tasks, costs = random_instance(3, 20, grouped=True)
    groups = SCHEDULERS[name](tasks, costs, 3).groups
    assert 3 <= len(groups) <= 3 * max(GROUPS_PER_WORKER)
    for group in groups:
        indices = [task.layer.index for task in group.tasks]
        assert indices == list(range(indices[0], indices[-1] + 1))


def test_pull_is_list_scheduling() -> None:
    """A worker that comes free takes the longest task left (Graham 1969), so within 2 - 1/m of the bound at most."""
    for seed in range(60):
        tasks, costs = random_instance(seed, 1 + seed % 12, grouped=False)
        for workers in (1, 2, 3, 5):
            loads = [0.0] * workers
            for load_s in sorted((costs.task_s(task) for task in tasks), reverse=True):
                loads[loads.index(min(loads))] += load_s
            makespan_s = pull(tasks, costs, workers).predicted_makespan_s
            assert makespan_s == pytest.approx(max(loads))
            assert makespan_s <= (2 - 1 / workers) * lower_bound_s(tasks, costs, workers) + 1e-9


def test_pull_keeps_grahams_bound_also_where_the_plan_was_all_wrong() -> None:
    rng = random.Random(11)
    for seed in range(60):
        tasks, costs = random_instance(seed, 1 + seed % 12, grouped=False)
        workers = 1 + seed % 5
        _, wrong = timed([rng.uniform(0.1, 9) for _ in tasks])
        makespan_s = replay(pull(tasks, wrong, workers), costs).makespan_s
        assert makespan_s <= (2 - 1 / workers) * lower_bound_s(tasks, costs, workers) + 1e-9


@pytest.mark.parametrize(
    ("name", "makespan_s"),
    [("round_robin", 24.0), ("wfd", 9.0), ("contiguous", 9.0), ("pull", 9.0), ("work_stealing", 9.0)],
)
def test_six_ones_on_four_workers(name: str, makespan_s: float) -> None:
    tasks, costs = timed([6.0, 1.0, 1.0, 1.0] * 4)
    times = replay(SCHEDULERS[name](tasks, costs, 4), costs)
    assert times.makespan_s == makespan_s
    assert sum(times.idle_s) == 4 * makespan_s - 36


@AS_THEY_COME_FREE
def test_workers_that_come_free_make_good_for_a_plan_that_was_wrong(name: str) -> None:
    tasks, true = timed([6.0, 1.0, 1.0, 1.0] * 4)
    equal = flat_costs(tasks, 1.0)
    assert replay(wfd(tasks, equal, 4), true).makespan_s == 24
    assert replay(SCHEDULERS[name](tasks, equal, 4), true).makespan_s <= 12


def test_stealing_balances_a_queue_that_takes_longer_than_planned() -> None:
    tasks, planned = timed([2.0] * 6)
    _, true = timed([8.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assignment = work_stealing(tasks, planned, 2)
    assert layout(assignment) == [[0, 2, 4], [1, 3, 5]]
    assert trained(replay(assignment, true)) == [[0, 2], [1, 3, 5, 4]]


def test_auto_is_pull_for_elastic_workers_contiguous_for_groups_and_wfd_otherwise() -> None:
    assert choose("auto", grouped=True) is contiguous
    assert choose("auto", grouped=False) is wfd
    assert choose("auto", grouped=True, elastic=True) is pull
    assert choose("contiguous", grouped=False, elastic=True) is contiguous
    assert choose("wfd", grouped=True) is wfd


def test_an_unknown_scheduler_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'contiguous'"):
        choose("contigous", grouped=True)


@AS_THEY_COME_FREE
def test_layers_are_cut_finely_only_where_prefixes_are_cheap(name: str) -> None:
    """Many runs balance better; where the prefix is most of the work, each further run costs more than it gains."""
    tasks = [make_task(at) for at in range(24)]
    keys = [task.key for task in tasks]
    blocks_s = dict.fromkeys(keys, 1.0)
    cheap = TaskCosts(dict.fromkeys(keys, 0.0), blocks_s, True, "test")
    dear = TaskCosts({key: 10.0 + at for at, key in enumerate(keys)}, blocks_s, True, "test")
    assert len(SCHEDULERS[name](tasks, cheap, 4).groups) == 8
    assert len(SCHEDULERS[name](tasks, dear, 4).groups) == 4
    best = contiguous(tasks, dear, 4).predicted_makespan_s
    assert SCHEDULERS[name](tasks, dear, 4).predicted_makespan_s == pytest.approx(best)
