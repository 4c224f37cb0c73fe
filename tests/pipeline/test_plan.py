"""Plans: which parallelism is chosen, when costs are measured, and how groups fit into memory."""

from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from experiments import scaling
from pbd import blocks
from pbd.config import ExecutionConfig
from pbd.costs import calibration, memory
from pbd.costs.memory import GIGABYTE, OVERHEAD, Footprint, TaskMemory
from pbd.errors import NoWorkersError, UsageError
from pbd.pipeline import plan
from pbd.scheduling.cost_table import Conditions, CostTable, TaskTimes, Workload
from tests.helpers.fakes import make_task

TASKS = [make_task(at) for at in range(3)]
KEYS = [task.key for task in TASKS]
WORK = Workload(epochs=3, steps_per_epoch=100, check_batches=2, fit_batches=4, score_batches=5)
FEW_STEPS = Workload(epochs=3, steps_per_epoch=99, check_batches=2, fit_batches=4, score_batches=5)


@dataclass
class Context:
    """The part of a training context that planning reads."""

    block: str = "decoupled_r2"
    data: Any = None

    def __post_init__(self) -> None:
        self.data = type("Data", (), {"batch_size": 64})
        self.can_share_batches = blocks.get(self.block).per_image


@dataclass
class Workers:
    """An executor that calls nothing: it returns the given costs."""

    table: CostTable
    num_workers: int = 2
    collective_size: int = 2
    elastic: bool = False
    work: Workload = WORK
    makespan_s: float | None = None
    """The predicted block phase that a calibration could be limited by, if costs were requested with one."""

    footprint: Footprint = field(default_factory=lambda: footprint_of(1.0))

    loses: str | None = None
    """The source of costs that loses the process which measures them."""

    def call(self, function: Any) -> Any:
        if function.func is calibration.load_workload:
            return self.work, 0.0
        if function.func is memory.footprint:
            return self.footprint
        *_, makespan_s, source = function.args
        if source == self.loses:
            raise NoWorkersError("the process that trains was ended by SIGKILL", "Go on with --resume --run-dir DIR.")
        self.makespan_s = makespan_s and makespan_s(self.table, self.work)
        return self.table


def footprint_of(gigabytes: float, free: float = 100.0) -> Footprint:
    """Return the footprint of layers that take so much each."""
    each = TaskMemory(features=int(GIGABYTE * gigabytes), activations=0, weights=0, moment=0)
    return Footprint(-OVERHEAD, dict.fromkeys(KEYS, each), int(GIGABYTE * free))


def table(**seconds: float) -> CostTable:
    times = TaskTimes(**{field.name: seconds.get(field.name, 0.0) for field in fields(TaskTimes)})
    return CostTable(Conditions("t", "fitted", 64), "cpu", "given", dict.fromkeys(KEYS, times))


def _names() -> list[str]:
    return [task.layer.name for task in TASKS]


def make(workers: Workers, context: Context | None = None, **settings: Any) -> plan.Plan:
    return plan.make_plan(ExecutionConfig(**settings), None, context or Context(), TASKS, TASKS, workers)


def test_a_layer_that_loses_the_process_that_times_it_does_not_cost_the_run(caplog: pytest.LogCaptureFixture) -> None:
    assert make(Workers(table(step_s=0.01), loses="auto"), parallel="task").assignment.groups
    assert caplog.messages == [
        "calibration failed (the process that trains was ended by SIGKILL): costs are estimated from "
        "multiply-accumulates."
    ]
    with pytest.raises(NoWorkersError):
        make(Workers(table(step_s=0.01), loses="macs"), costs="macs")


SLOW_PREFIX = {"prefix_s": 0.1, "step_s": 0.01}


def test_data_parallelism_is_chosen_from_300_steps() -> None:
    plan = make(Workers(table(**SLOW_PREFIX)))
    assert plan.assignment.shared
    (group,) = plan.assignment.groups
    assert list(group.layer_names) == _names()
    assert plan.reason == "data parallelism: 300 steps, at least 300"
    expected = table(**SLOW_PREFIX).shared(2).costs(WORK, True).load_s(TASKS)
    assert plan.assignment.predicted_makespan_s == group.predicted_s == pytest.approx(expected)


def test_task_parallelism_is_chosen_below_300_steps() -> None:
    plan = make(Workers(table(**SLOW_PREFIX), work=FEW_STEPS))
    assert not plan.assignment.shared
    assert plan.reason == "task parallelism: 297 steps, fewer than 300"
    requested = make(Workers(table(**SLOW_PREFIX), work=FEW_STEPS), parallel="data")
    assert (requested.assignment.shared, requested.reason) == (True, "")


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
        ({"parallel": "data"}, {}, "two_layer"),
    ],
)
def test_settings_that_exclude_data_parallelism(settings: dict[str, Any], workers: dict[str, Any], block: str) -> None:
    plan = make(Workers(table(**SLOW_PREFIX), **workers), Context(block), **settings)
    assert not plan.assignment.shared
    assert plan.reason == ""
    assert sorted(name for group in plan.assignment.groups for name in group.layer_names) == _names()


def test_costs_may_be_measured_only_where_tasks_are_assigned_to_several_workers() -> None:
    by_task, data, alone = (Workers(table(**SLOW_PREFIX), num_workers=count) for count in (2, 2, 1))
    plan = make(by_task, parallel="task")
    assert by_task.makespan_s == pytest.approx(plan.assignment.predicted_makespan_s)
    make(data)
    make(alone, parallel="task")
    assert (data.makespan_s, alone.makespan_s) == (None, None)


def test_on_elastic_executors_data_parallelism_must_be_requested() -> None:
    assert make(Workers(table(**SLOW_PREFIX), elastic=True), parallel="data").assignment.shared


@pytest.mark.parametrize(("limit", "groups"), [(None, 1), (6.0, 1), (4.0, 2), (2.0, 3)])
def test_one_worker_trains_at_once_what_fits_into_its_memory(limit: float | None, groups: int) -> None:
    alone = Workers(table(**SLOW_PREFIX), num_workers=1, collective_size=1, footprint=footprint_of(2.0))
    plan = make(alone, memory_limit=limit)
    assert len(plan.assignment.groups) == groups
    assert [name for group in plan.assignment.groups for name in group.layer_names] == _names()
    assert plan.reason == ("" if groups == 1 else f"{groups} groups of at most {limit} GB each")
    (load_s,) = plan.assignment.predicted_load_s
    assert load_s == pytest.approx(sum(group.predicted_s for group in plan.assignment.groups)), "a prefix for each"


def test_data_parallel_workers_fit_more_layers_into_memory() -> None:
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
    with pytest.raises(UsageError, match=r"1\.5 GB, but conv0 .* need 2\.00 GB.*--batch-size below 64"):
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
