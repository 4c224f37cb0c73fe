"""The cost of layers: prefix paid once in a group, once per task otherwise."""

import math
import random

import pytest

from pbd.scheduling.cost_model import LayerCosts, costs_from_macs
from tests.fakes import make_task

pytestmark = pytest.mark.fast

TASKS = [make_task(0), make_task(1), make_task(2)]
PREFIX_S = {"conv0": 1.0, "conv1": 4.0, "conv2": 2.0}
BLOCK_S = {"conv0": 10.0, "conv1": 20.0, "conv2": 40.0}


def test_a_group_pays_its_deepest_prefix_once_and_single_tasks_pay_each() -> None:
    assert LayerCosts(PREFIX_S, BLOCK_S, True, "test").load_s(TASKS) == 4.0 + 70.0
    assert LayerCosts(PREFIX_S, BLOCK_S, False, "test").load_s(TASKS) == 7.0 + 70.0


@pytest.mark.parametrize("grouped", [True, False])
def test_one_task_alone_costs_the_same_however_it_is_asked(grouped: bool) -> None:
    costs = LayerCosts(PREFIX_S, BLOCK_S, grouped, "test")
    assert costs.load_s([]) == 0
    for task in TASKS:
        assert costs.load_s([task]) == costs.task_s(task)


@pytest.mark.parametrize("grouped", [True, False])
def test_run_loads_agree_with_load_of_every_run(grouped: bool) -> None:
    rng = random.Random(0)
    tasks = [make_task(at) for at in range(9)]
    prefix_s, block_s = ({task.layer_name: rng.uniform(0, 9) for task in tasks} for _ in range(2))
    costs = LayerCosts(prefix_s, block_s, grouped, "test")
    table = costs.run_loads_s(tasks)
    for start, loads_s in enumerate(table):
        assert loads_s == pytest.approx([costs.load_s(tasks[start:end]) for end in range(start + 1, 10)])


def test_macs_become_seconds_with_three_passes_for_the_block_and_one_for_the_prefix() -> None:
    task = make_task(0, prefix_macs=5_000_000, block_macs=1_000_000)
    costs = costs_from_macs([task], images=100, epochs=2, macs_per_s=1e9, grouped=True)
    assert costs.prefix_s["conv0"] == pytest.approx(100 * 2 * 5e6 / 1e9)
    assert costs.block_s["conv0"] == pytest.approx(3 * 100 * 2 * 1e6 / 1e9)
    assert costs.grouped


def test_the_estimate_names_its_rate() -> None:
    costs = costs_from_macs(TASKS, 1, 1, macs_per_s=12.34e9, grouped=False)
    assert costs.source == "multiply-accumulates at the teacher's measured forward rate (12.3 GMAC/s)"


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="macs_per_s must be positive"):
        costs_from_macs(TASKS, 1, 1, macs_per_s=rate, grouped=False)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_a_cost_that_would_mislead_a_scheduler_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"at least 0.*for conv0"):
        LayerCosts({"conv0": 0.0}, {"conv0": seconds}, False, "test")


def test_a_layer_with_half_its_cost_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="conv2"):
        LayerCosts({"conv1": 1.0, "conv2": 1.0}, {"conv1": 1.0}, False, "test")
