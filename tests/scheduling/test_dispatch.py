"""Dispatch: whose turn it is for which group, as workers come free, are lost, or join."""

import itertools
import random

import pytest

from pbd.records import Assignment, TaskGroup
from pbd.scheduling.dispatch import Dispatcher
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast

GROUPS = tuple(TaskGroup((make_task(at),)) for at in range(8))


def assigned(
    *queues: tuple[TaskGroup, ...], pool: tuple[TaskGroup, ...] = (), steals: bool = False
) -> Dispatcher[TaskGroup]:
    return Dispatcher.of(Assignment("by hand", queues, (0.0,) * len(queues), pool=pool, steals=steals))


def taken(dispatcher: Dispatcher, *workers: int) -> list[int | None]:
    groups = [dispatcher.take(worker) for worker in workers]
    return [group.tasks[0].layer.index if group else None for group in groups]


def test_a_worker_takes_its_own_queue_in_order_and_then_the_pool() -> None:
    dispatcher = assigned(GROUPS[:2], GROUPS[2:3], pool=GROUPS[3:5])
    assert taken(dispatcher, 0, 1, 1, 0, 0, 1) == [0, 2, 3, 1, 4, None]


def test_queues_are_left_alone_where_the_assignment_does_not_steal() -> None:
    dispatcher = assigned(GROUPS[:3], ())
    assert taken(dispatcher, 1) == [None]
    assert dispatcher.left == 3


def test_stealing_takes_the_last_group_of_the_longest_queue() -> None:
    dispatcher = assigned(GROUPS[:2], GROUPS[2:6], (), steals=True)
    assert taken(dispatcher, 2, 2, 2) == [5, 4, 1]
    assert taken(dispatcher, 1, 0, 0, 0) == [2, 0, 3, None]


def test_what_was_put_back_goes_first_and_the_latest_of_it_before_the_rest() -> None:
    dispatcher = assigned((), (), pool=GROUPS[:3])
    first, second = dispatcher.take(0), dispatcher.take(1)
    assert first is not None
    assert second is not None
    dispatcher.put_back(second)
    dispatcher.put_back(first)
    assert taken(dispatcher, 1, 1, 1, 1) == [0, 1, 2, None]


def test_the_queue_of_a_lost_worker_goes_to_the_pool_in_order() -> None:
    dispatcher = assigned(GROUPS[:3], GROUPS[3:4], pool=GROUPS[4:5])
    assert taken(dispatcher, 0) == [0]
    dispatcher.lose(0)
    dispatcher.put_back(GROUPS[0])
    dispatcher.lose(0)
    assert dispatcher.left == 5
    assert taken(dispatcher, 1, 1, 1, 1, 1, 1) == [3, 0, 4, 1, 2, None]


def test_a_worker_that_joined_later_draws_from_the_pool_and_may_steal() -> None:
    assert taken(assigned(GROUPS[:1], pool=GROUPS[1:2]), 7, 7) == [1, None]
    assert taken(assigned(GROUPS[:2], steals=True), 7, 0, 7) == [1, 0, None]


def test_a_worker_that_was_lost_and_came_back_finds_the_pool() -> None:
    dispatcher = assigned(GROUPS[:2], ())
    dispatcher.lose(0)
    assert taken(dispatcher, 0, 1, 0) == [0, 1, None]


@pytest.mark.parametrize("steals", [True, False])
def test_every_group_is_handed_out_once_whoever_comes_and_goes(steals: bool) -> None:
    rng = random.Random(5)
    for _ in range(200):
        cuts = sorted(rng.randint(0, 8) for _ in range(3))
        *queues, pool = [GROUPS[start:end] for start, end in itertools.pairwise([0, *cuts, 8])]
        dispatcher = assigned(*queues, pool=pool, steals=steals)
        trained: list[TaskGroup] = []
        for _ in range(20):
            worker = rng.randrange(5)
            if rng.random() < 0.1:
                dispatcher.lose(worker)
            elif (group := dispatcher.take(worker)) is not None:
                if rng.random() < 0.2:
                    dispatcher.put_back(group)
                else:
                    trained.append(group)
        assert dispatcher.left == len(GROUPS) - len(trained)
        for worker in range(3):
            dispatcher.lose(worker)
        while (group := dispatcher.take(9)) is not None:
            trained.append(group)
        assert sorted(group.tasks[0].layer.index for group in trained) == list(range(8))
