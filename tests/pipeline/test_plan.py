"""Planning: when workers share every batch, and what they are told then."""

from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from experiments import scaling
from pbd.collective import SINGLE
from pbd.config import ExecutionConfig
from pbd.costs import calibration, memory
from pbd.costs.memory import GIGABYTE, OVERHEAD, Footprint, LayerMemory
from pbd.errors import NoWorkersError, UsageError
from pbd.pipeline import plan, remote_tasks
from pbd.pipeline.remote_tasks import BENCHMARK_REPEATS, AllReduceBenchmark
from pbd.scheduling.cost_table import Conditions, CostTable, LayerTimes, Workload
from tests.helpers.fakes import make_task

TASKS = [make_task(at) for at in range(3)]
WORK = Workload(epochs=3, steps_per_epoch=100, check_batches=2, fit_batches=4, score_batches=5)


@dataclass
class Context:
    """As much of a training context as planning looks at."""

    block: str = "decoupled_r2"
    data: Any = None

    def __post_init__(self) -> None:
        self.data = type("Data", (), {"batch_size": 64})


@dataclass
class Workers:
    """An executor that calls nothing: costs and the exchange's seconds are given."""

    table: CostTable
    exchange_s: float = 0.001
    num_workers: int = 2
    collective_size: int = 2
    elastic: bool = False
    asked: int = 0
    sharers: int = 0
    """Among how many workers tasks were to be shared when costs were asked for."""

    footprint: Footprint = field(default_factory=lambda: footprint_of(1.0))

    loses: str | None = None
    """The kind of costs that lose the process which measures them."""

    def call(self, function: Any) -> Any:
        if function.func is calibration.predict and function.args[2] == self.loses:
            raise NoWorkersError("the process that trains was ended by SIGKILL")
        if function.func is memory.footprint:
            return self.footprint
        self.sharers = function.args[4]
        return self.table, WORK

    def run_collective(self, function: Any, emit: Any, max_workers: int) -> float:
        self.asked += 1
        assert function.values == sum(task.params for task in TASKS)
        return self.exchange_s


def footprint_of(gigabytes: float, free: float = 100.0) -> Footprint:
    """Return the footprint of layers that take so much each."""
    each = LayerMemory(shown=int(GIGABYTE * gigabytes), learning=0, weights=0, moment=0)
    return Footprint(-OVERHEAD, dict.fromkeys(_names(), each), int(GIGABYTE * free))


def table(**seconds: float) -> CostTable:
    times = LayerTimes(**{field.name: seconds.get(field.name, 0.0) for field in fields(LayerTimes)})
    return CostTable(Conditions("t", "decoupled_r2", "fitted", 64), "cpu", "given", dict.fromkeys(_names(), times))


def _names() -> list[str]:
    return [task.layer.name for task in TASKS]


def make(workers: Workers, context: Context | None = None, **settings: Any) -> plan.Plan:
    return plan.make_plan(ExecutionConfig(**settings), None, context or Context(), TASKS, TASKS, workers)


def test_a_layer_that_loses_the_process_that_times_it_does_not_cost_the_run(caplog: pytest.LogCaptureFixture) -> None:
    assert make(Workers(table(step_s=0.01), loses="auto"), parallel="task").assignment.groups
    assert "SIGKILL" in caplog.text
    with pytest.raises(NoWorkersError):
        make(Workers(table(step_s=0.01), loses="macs"), costs="macs")


def test_all_load_what_they_train_with_before_they_time_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(remote_tasks, "load", done.append)
    monkeypatch.setattr(SINGLE, "all_reduce_sum", lambda values: done.append(values.size))
    assert AllReduceBenchmark("context", 7)(SINGLE, lambda event: None) >= 0.0
    assert (done[0], done.count("context"), done.count(7)) == ("context", 1, BENCHMARK_REPEATS)


SLOW_PREFIX = {"prefix_s": 0.1, "step_s": 0.01}


def test_where_the_teacher_costs_most_the_workers_share_every_batch() -> None:
    plan = make(Workers(table(**SLOW_PREFIX)))
    assert plan.assignment.shared
    (group,) = plan.assignment.groups
    assert list(group.layer_names) == _names()
    assert "all layers together" in plan.why
    assert "1.0 ms of every step" in plan.why
    expected = table(**SLOW_PREFIX).shared(2).costs(WORK, True).load_s(TASKS) + WORK.steps * 0.001
    assert plan.assignment.predicted_makespan_s == group.predicted_s == pytest.approx(expected)


def test_where_exchanging_takes_longer_than_the_teacher_each_trains_layers_of_its_own() -> None:
    plan = make(Workers(table(**SLOW_PREFIX), exchange_s=1.0))
    assert not plan.assignment.shared
    assert "1000.0 ms of every step" in plan.why
    assert make(Workers(table(**SLOW_PREFIX), exchange_s=1.0), parallel="data").assignment.shared, "it was asked for"


@pytest.mark.parametrize(
    ("settings", "workers", "block"),
    [
        ({"parallel": "task"}, {}, "decoupled_r2"),
        ({"scheduler": "wfd"}, {}, "decoupled_r2"),
        ({"group": False}, {}, "decoupled_r2"),
        ({}, {"elastic": True}, "decoupled_r2"),
        ({}, {"collective_size": 1}, "decoupled_r2"),
        ({}, {"num_workers": 1, "collective_size": 1}, "decoupled_r2"),
        ({}, {}, "two_layer"),
    ],
)
def test_what_speaks_against_sharing(settings: dict[str, Any], workers: dict[str, Any], block: str) -> None:
    there = Workers(table(**SLOW_PREFIX), **workers)
    plan = make(there, Context(block), **settings)
    assert not plan.assignment.shared
    assert (plan.why, there.asked) == ("", 0)
    assert sorted(name for group in plan.assignment.groups for name in group.layer_names) == _names()


@pytest.mark.parametrize(("parallel", "sharers"), [("auto", 2), ("task", 2), ("data", 1)])
def test_costs_are_not_measured_where_they_decide_nothing(parallel: str, sharers: int) -> None:
    there = Workers(table(**SLOW_PREFIX))
    make(there, parallel=parallel)
    assert there.sharers == sharers


def test_on_workers_that_come_and_go_sharing_has_to_be_asked_for() -> None:
    assert make(Workers(table(**SLOW_PREFIX), elastic=True), parallel="data").assignment.shared


@pytest.mark.parametrize(("limit", "groups"), [(None, 1), (6.0, 1), (4.0, 2), (2.0, 3)])
def test_one_worker_trains_at_once_what_fits_into_its_memory(limit: float | None, groups: int) -> None:
    alone = Workers(table(**SLOW_PREFIX), num_workers=1, collective_size=1, footprint=footprint_of(2.0))
    plan = make(alone, memory_limit=limit)
    assert len(plan.assignment.groups) == groups
    assert [name for group in plan.assignment.groups for name in group.layer_names] == _names()
    assert plan.why == ("" if groups == 1 else f"in {groups} groups, to take at most {limit} GB each")
    (load_s,) = plan.assignment.predicted_load_s
    assert load_s == pytest.approx(sum(group.predicted_s for group in plan.assignment.groups)), "a prefix for each"


def test_who_shares_a_batch_has_room_for_more_layers() -> None:
    workers = Workers(table(**SLOW_PREFIX), footprint=footprint_of(2.0))
    plan = make(workers, memory_limit=2.0)
    assert [len(group.tasks) for group in plan.assignment.groups] == [2, 1]
    assert plan.assignment.shared
    assert plan.assignment.predicted_load_s[0] == pytest.approx(sum(g.predicted_s for g in plan.assignment.groups))


def test_without_a_limit_what_is_free_is_one_that_refuses_nothing() -> None:
    crowded = Workers(table(**SLOW_PREFIX), num_workers=1, collective_size=1, footprint=footprint_of(2.0, free=1.0))
    plan = make(crowded)
    assert [len(group.tasks) for group in plan.assignment.groups] == [1, 1, 1]
    assert make(Workers(table(**SLOW_PREFIX), footprint=footprint_of(2.0)), parallel="data", memory_limit=1.5)
    with pytest.raises(UsageError, match=r"1\.5 GB, but conv0 .* 2\.00 GB.*--batch-size below 64"):
        make(crowded, memory_limit=1.5)


def test_more_workers_than_there_are_are_predicted_from_the_same_costs() -> None:
    costs = table(step_s=0.01, prefix_s=0.01)
    gradients = 4 * sum(task.params for task in TASKS)
    alone, two, many = scaling.predict(TASKS, costs, WORK, [1, 2, 16], bytes_per_s=1e6, shares=True)
    assert (alone.by_task_gain, alone.shared_gain, alone.exchange_s) == (1.0, pytest.approx(1.0), 0.0)
    assert alone.by_task_s == pytest.approx(WORK.steps * 0.04 + WORK.checks * 0.01 + 9 * 0.01, rel=0.3)
    assert two.exchange_s == pytest.approx(WORK.steps * gradients / 1e6), "each sends its half twice"
    assert two.shared_s == pytest.approx(alone.shared_s / 2 + two.exchange_s)
    assert many.by_task_s == scaling.predict(TASKS, costs, WORK, [3], 1e6, True)[0].by_task_s, "there are three layers"
    assert many.exchange_s == pytest.approx(two.exchange_s * 15 / 8)
    (whole,) = scaling.predict(TASKS, costs, WORK, [2], bytes_per_s=1e6, shares=False)
    assert (whole.shared_s, whole.shared_gain, whole.by_task_s) == (None, None, two.by_task_s)
