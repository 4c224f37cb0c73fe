"""The cost of layers: prefix paid once in a group, once per task otherwise."""

import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pbd.errors import BadInputError, MissingInputError, UsageError
from pbd.records import BlockResult
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.cost_table import (
    BLOCK_TRACING_S,
    GROUP_TRACING_S,
    Conditions,
    CostTable,
    TaskTimes,
    Workload,
    interpolated,
    read_requested,
    read_table,
    table_from_macs,
)
from tests.helpers.fakes import key, make_task

pytestmark = pytest.mark.fast

TASKS = [make_task(0), make_task(1), make_task(2)]
KEYS = [task.key for task in TASKS]
PREFIX_S = dict(zip(KEYS, (1.0, 4.0, 2.0), strict=True))
BLOCK_S = dict(zip(KEYS, (10.0, 20.0, 40.0), strict=True))
CONDITIONS = Conditions(teacher="a1b2", block_init="fitted", batch_size=8)
WORK = Workload(epochs=3, steps_per_epoch=10, check_batches=2, fit_batches=4, score_batches=5)


def task_times(seed: int) -> TaskTimes:
    rng = random.Random(seed)
    return TaskTimes(**{field.name: rng.uniform(0.1, 1.0) for field in fields(TaskTimes)})


TABLE = CostTable(
    CONDITIONS, "one core", "calibrated on one core", {key: task_times(at) for at, key in enumerate(KEYS)}
)
FIRST_TIMES = TABLE.as_json()["tasks"]["conv0@two_layer"]


def result(layer: str, worker: int | None, started_s: float, seconds: float, epochs: int = 3) -> BlockResult:
    errors = (0.1,) * (epochs + 1)
    return BlockResult(
        layer, "trained", "two_layer", nmse_history=errors, worker=worker, started_s=started_s, seconds=seconds
    )


def test_a_group_pays_its_deepest_prefix_once_and_single_tasks_pay_each() -> None:
    assert TaskCosts(PREFIX_S, BLOCK_S, True, "test").load_s(TASKS) == 4.0 + 70.0
    assert TaskCosts(PREFIX_S, BLOCK_S, False, "test").load_s(TASKS) == 7.0 + 70.0


@pytest.mark.parametrize("grouped", [True, False])
def test_one_task_alone_costs_the_same_however_it_is_asked(grouped: bool) -> None:
    costs = TaskCosts(PREFIX_S, BLOCK_S, grouped, "test")
    assert costs.load_s([]) == 0
    for task in TASKS:
        assert costs.load_s([task]) == costs.task_s(task)


@pytest.mark.parametrize("grouped", [True, False])
def test_run_loads_agree_with_load_of_every_run(grouped: bool) -> None:
    rng = random.Random(0)
    tasks = [make_task(at, design=design) for at in range(3) for design in ("one", "two", "three")]
    prefix_s, block_s, layer_s = ({task.key: rng.uniform(0, 9) for task in tasks} for _ in range(3))
    costs = TaskCosts(prefix_s, block_s, grouped, "test", layer_s)
    table = costs.run_loads_s(tasks)
    for start, loads_s in enumerate(table):
        assert loads_s == pytest.approx([costs.load_s(tasks[start:end]) for end in range(start + 1, 10)])


def test_what_blocks_of_a_layer_share_counts_once_in_a_group_and_for_each_single_task() -> None:
    one, two, deeper = make_task(0, design="one"), make_task(0, design="two"), make_task(1, design="one")
    keys = [task.key for task in (one, two, deeper)]
    layer_s = dict(zip(keys, (3.0, 5.0, 7.0), strict=True))
    costs = TaskCosts(dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 1.0), True, "test", layer_s)
    assert costs.load_s([one, two]) == costs.load_s([two, one]) == 2 * 1.0 + 5.0, (
        "statistics for the one that needs most"
    )
    assert costs.load_s([one, two, deeper]) == 3 * 1.0 + 5.0 + 7.0
    assert replace(costs, grouped=False).load_s([one, two, deeper]) == 3 * 1.0 + 3.0 + 5.0 + 7.0


def test_macs_become_seconds_with_three_passes_for_the_block_and_one_for_the_prefix() -> None:
    task = make_task(0, prefix_macs=5_000_000, block_macs=1_000_000)
    table = table_from_macs(CONDITIONS, "cpu", [task], teacher_macs=7_000_000, macs_per_s=1e9)
    costs = table.costs(Workload(2, 10, check_batches=0, fit_batches=0, score_batches=0), grouped=True)
    assert costs.prefix_s[KEYS[0]] == pytest.approx(GROUP_TRACING_S + 2 * 10 * 8 * 5e6 / 1e9)
    assert costs.block_s[KEYS[0]] == pytest.approx(BLOCK_TRACING_S + 3 * 2 * 10 * 8 * 1e6 / 1e9)
    scored = table.costs(Workload(0, 10, check_batches=0, fit_batches=0, score_batches=1), grouped=True)
    assert scored.prefix_s[KEYS[0]] == pytest.approx(GROUP_TRACING_S + 8 * (5e6 + 7e6) / 1e9)
    assert scored.block_s[KEYS[0]] == pytest.approx(BLOCK_TRACING_S + 8 * (2e6 + 2e6) / 1e9)


def test_the_estimate_names_its_rate() -> None:
    table = table_from_macs(CONDITIONS, "cpu", TASKS, 10_000, macs_per_s=12.34e9)
    assert table.source == "multiply-accumulates at the teacher's measured forward rate (12.3 GMAC/s)"


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="macs_per_s must be positive"):
        table_from_macs(CONDITIONS, "cpu", TASKS, 10_000, macs_per_s=rate)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_a_cost_that_would_mislead_a_scheduler_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"at least 0.*for conv0"):
        TaskCosts({KEYS[0]: 0.0}, {KEYS[0]: seconds}, False, "test")
    with pytest.raises(ValueError, match=r"at least 0.*for conv0"):
        TaskCosts({KEYS[0]: 0.0}, {KEYS[0]: 0.0}, False, "test", {KEYS[0]: seconds})


def test_a_task_with_half_its_cost_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="conv2"):
        TaskCosts({KEYS[1]: 1.0, KEYS[2]: 1.0}, {KEYS[1]: 1.0}, False, "test")


def test_what_is_paid_once_per_group_is_in_the_prefix_and_what_each_block_pays_is_in_the_block() -> None:
    times = TaskTimes(prefix_s=1.0, step_s=0, check_s=0, suffix_s=0, group_once_s=100.0, epoch_s=10.0, load_s=1000.0)
    assert times.group_s(WORK) == 100 + 3 * 10 + (30 + 8 + 2 + 4 + 2 * 5) * 1.0
    assert times.block_s(WORK) == 0
    own = TaskTimes(prefix_s=0, step_s=1.0, check_s=0.1, suffix_s=0, target_s=0.01, gather_s=0.001, block_once_s=100.0)
    assert own.group_s(WORK) == 0
    assert own.block_s(WORK) == pytest.approx(100 + 30 * 1.0 + (8 + 2 * 5) * 0.1)
    assert own.layer_s(WORK) == pytest.approx(2 * 0.01 + 4 * 0.001)
    both = TaskTimes(prefix_s=0, step_s=0, check_s=0, suffix_s=1.0)
    assert (both.group_s(WORK), both.block_s(WORK)) == (5, 5)


def test_loading_counts_once_in_a_shared_group_and_not_for_single_tasks() -> None:
    times = TaskTimes(prefix_s=0, step_s=0, check_s=0, suffix_s=0, load_s=7.0)
    table = replace(TABLE, tasks={KEYS[0]: times, KEYS[1]: times})
    assert table.costs(WORK, grouped=True).load_s(TASKS[:2]) == 7.0
    assert table.costs(WORK, grouped=False).load_s(TASKS[:2]) == 0.0


def test_no_epochs_leave_the_initial_weights_and_the_scores() -> None:
    times = TaskTimes(prefix_s=1.0, step_s=9.0, check_s=0, suffix_s=0, epoch_s=9.0)
    assert times.group_s(replace(WORK, epochs=0)) == 4 + 2 * 5
    assert times.block_s(replace(WORK, epochs=0)) == 0
    assert replace(times, target_s=9.0, gather_s=2.0).layer_s(replace(WORK, epochs=0)) == 4 * 2.0


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(TABLE.as_json()))
    assert read_table(tmp_path / "costs.json") == TABLE
    assert read_requested(str(tmp_path / "costs.json")) == TABLE
    assert read_requested("auto") is read_requested("calibrate") is read_requested("macs") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "version 1"),
        ({"tasks": {"conv0@two_layer": {"prefix_s": 1.0}}}, "missing 3 required"),
        ({"tasks": {"conv0@two_layer": FIRST_TIMES | {"step_s": -1.0}}}, "step_s of conv0@two_layer is -1.0"),
        ({"tasks": {"conv0@two_layer": FIRST_TIMES | {"step_s": math.nan}}}, "step_s of conv0@two_layer is nan"),
        ({"tasks": {"conv0@two_layer": FIRST_TIMES | {"step_s": "1"}}}, "step_s of conv0@two_layer is '1'"),
        ({"tasks": {"conv0@two_layer": FIRST_TIMES | {"step_s": 10**400}}}, "int too large"),
        ({"tasks": [1]}, "items"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(TABLE.as_json() | change))
    with pytest.raises(BadInputError, match=said) as refused:
        read_table(tmp_path / "costs.json")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", "null", '"text"', "\0\0", "[" * 10**5])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(BadInputError, match="must be a file that pbd wrote"):
        read_table(tmp_path / "costs.json")


def test_a_misspelt_choice_or_a_folder_is_a_missing_file(tmp_path: Path) -> None:
    for wanted in ("calibrat", str(tmp_path)):
        with pytest.raises(MissingInputError, match="auto, calibrate, macs"):
            read_requested(wanted)


@pytest.mark.parametrize(("name", "other"), [("teacher", "ffff"), ("block_init", "noise"), ("batch_size", 64)])
def test_a_table_of_another_run_is_refused_and_both_are_named(name: str, other: str | int) -> None:
    with pytest.raises(UsageError, match=name) as refused:
        TABLE.check(replace(CONDITIONS, **{name: other}), KEYS[:1])
    assert repr(other) in str(refused.value)
    assert repr(getattr(CONDITIONS, name)) in str(refused.value)


def test_a_table_may_know_more_blocks_than_the_run_but_not_fewer() -> None:
    TABLE.check(CONDITIONS, KEYS[1:2])
    with pytest.raises(UsageError, match="conv7@two_layer"):
        TABLE.check(CONDITIONS, [KEYS[1], key("conv7")])


@pytest.mark.parametrize("grouped", [True, False])
def test_a_corrected_table_predicts_what_was_measured(grouped: bool) -> None:
    alone = [([task], 10.0 + task.layer.index) for task in TASKS]
    groups = [(TASKS[:2], 123.0), (TASKS[2:], 45.0)] if grouped else alone
    results = [result(t.layer.name, w, 0.0, s) for w, (tasks, s) in enumerate(groups) for t in tasks]
    corrected = TABLE.corrected(results, WORK, grouped, "runs/one")
    for tasks, seconds in groups:
        assert corrected.costs(WORK, grouped).load_s(tasks) == pytest.approx(seconds)
    assert corrected.source == "measured by the run in runs/one on one core"


def test_designs_of_a_layer_are_corrected_by_their_own_groups() -> None:
    designs = [make_task(0, design=name) for name in ("decoupled_r1", "spatial_svd_r50", "two_layer")]
    table = replace(TABLE, tasks={task.key: task_times(at) for at, task in enumerate(designs)})
    measured_s = {"decoupled_r1": (0, 40.0), "spatial_svd_r50": (0, 40.0), "two_layer": (1, 90.0)}
    results = [
        replace(result("conv0", worker, 0.0, seconds), design=name) for name, (worker, seconds) in measured_s.items()
    ]
    costs = table.corrected(results, WORK, True, "runs/one").costs(WORK, True)
    assert costs.load_s(designs[:2]) == pytest.approx(40.0)
    assert costs.load_s(designs[2:]) == pytest.approx(90.0)


def test_a_correction_counts_the_epochs_that_were_trained() -> None:
    full = TABLE.costs(WORK, grouped=True)
    short = TABLE.costs(replace(WORK, epochs=1), grouped=True)
    taken_s = max(full.prefix_s[key] for key in KEYS[:2]) + sum(full.layer_s[key] for key in KEYS[:2])
    taken_s += full.block_s[KEYS[0]] + short.block_s[KEYS[1]]
    results = [result("conv0", 0, 0.0, 2 * taken_s), result("conv1", 0, 0.0, 2 * taken_s, epochs=1)]
    corrected = TABLE.corrected(results, WORK, True, "runs/one")
    assert corrected.costs(WORK, True).load_s(TASKS[:2]) == pytest.approx(2 * full.load_s(TASKS[:2]))


def test_what_no_worker_stamped_what_failed_and_what_is_unknown_corrects_nothing() -> None:
    failed = replace(result("conv0", 0, 0.0, 50.0), status="failed")
    results = [failed, result("conv1", 0, 0.0, 50.0), result("conv2", None, 0.0, 9.0), result("other", 1, 0.0, 9.0)]
    corrected = TABLE.corrected(results, WORK, True, "runs/one")
    assert corrected.tasks == TABLE.tasks
    assert corrected.source == "calibrated on one core", "nothing was measured, and nothing says so"


def test_a_group_that_was_found_in_part_corrects_nothing() -> None:
    found = replace(result("conv0", 0, 0.0, 50.0), from_journal=True)
    corrected = TABLE.corrected([found, result("conv1", 0, 0.0, 3.0)], WORK, True, "runs/one")
    assert corrected.tasks == TABLE.tasks


def test_a_group_that_workers_shared_corrects_nothing() -> None:
    """Its seconds are those of a part of every batch."""
    shared = [replace(result(f"conv{at}", 0, 0.0, 50.0), shared=True) for at in range(3)]
    assert TABLE.corrected(shared, WORK, True, "runs/one") == TABLE


def test_of_workers_that_share_every_batch_each_pays_its_part_of_what_is_paid_per_image() -> None:
    times = TABLE.tasks[KEYS[1]]
    half = times.shared(2)
    assert times.shared(1) == times
    once = {"block_once_s", "group_once_s", "epoch_s", "load_s"}
    for name, seconds in vars(times).items():
        assert getattr(half, name) == (seconds if name in once else seconds / 2), name
    tasks, whole, shared = TASKS[:2], TABLE.costs(WORK, True), TABLE.shared(2).costs(WORK, True)
    assert whole.load_s(tasks) / 2 < shared.load_s(tasks) < whole.load_s(tasks)


def test_between_two_depths_the_prefix_is_linear_and_never_shorter_than_a_shallower_one() -> None:
    points = {100: 1.0, 300: 3.0, 200: 5.0}
    assert interpolated(points, 100) == 1.0
    assert interpolated(points, 150) == 3.0
    assert interpolated(points, 300) == 5.0
    assert (interpolated(points, 0), interpolated(points, 10**12)) == (1.0, 5.0)
