"""Budgets as users write them."""

import itertools

import pytest

from pbd.config import RunConfig
from pbd.config.budgets import Budget, parse, sweep
from pbd.errors import UsageError

pytestmark = pytest.mark.fast


def test_up_to_one_an_amount_is_a_fraction_of_the_teachers() -> None:
    assert parse("macs:0.3") == Budget("macs", 0.3)
    assert parse("macs:0.3").limit(200.0) == pytest.approx(60.0)
    assert parse("params:1").limit(200.0) == 200.0
    assert parse("params:100000").limit(200.0) == 100_000.0
    assert Budget("latency", 1.25).limit(2.0) == 2.5, "a fraction, of a network that is slower than its teacher"
    assert str(parse("params:100000")) == "params:100000"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("mac:0.3", "macs"),
        ("macs", "Give macs:0.5, for example."),
        ("macs:half", "Give macs:0.5, for example."),
        ("macs:0", "Give macs:0.5, for example."),
        ("macs:-1", "Give macs:0.5, for example."),
        ("macs:nan", "Give macs:0.5, for example."),
        ("params:inf", "Give params:0.5, for example."),
    ],
)
def test_what_is_no_budget_is_refused_with_an_example(text: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy) as refused:
        RunConfig.of(budget=text)
    assert "\n" not in str(refused.value)


def test_budgets_limit_different_resources_and_exclude_thresholds() -> None:
    assert RunConfig.of(budget=["macs:0.3", "params:0.5"]).student.budget == ("macs:0.3", "params:0.5")
    with pytest.raises(UsageError, match="Give each once"):
        RunConfig.of(budget=["macs:0.3", "macs:0.5"])
    for threshold in ("accuracy_threshold", "max_accuracy_drop", "target_accuracy_drop"):
        with pytest.raises(UsageError, match=f"{threshold} 0.1"):
            RunConfig.of(budget="macs:0.3", **{threshold: 0.1})


def test_the_remedies_of_sweeps_and_limits_of_accuracy_work() -> None:
    with pytest.raises(UsageError, match="Give each amount once"):
        RunConfig.of(sweep="latency:0.5,0.5")
    assert sweep(str(RunConfig.of(sweep="latency:0.5,0.4").student.sweep)) == ("latency:0.5", "latency:0.4")
    ways = {"sweep": "macs:0.5,0.4", "budget": "macs:0.5", "max_drop": 0.01}
    for one, other in itertools.combinations(ways, 2):
        with pytest.raises(UsageError, match="Give one of them"):
            RunConfig.of(**{one: ways[one], other: ways[other]})
    for name, value in ways.items():
        RunConfig.of(**{name: value})
