"""With `max_drop`: which networks are tried, and which one is chosen, by their latency and what they lose."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pbd.config import StudentConfig, budgets
from pbd.errors import InfeasibleBudgetError
from pbd.pipeline import choosing
from pbd.records import ChoiceReport

LEAST = 0.2
"""The least latency that is possible, as a fraction of the teacher's."""


class Networks:
    """Networks of twenty latencies: each loses as much accuracy as `drop` says of its share of the latency."""

    def __init__(self, drop: Any) -> None:
        self.drop, self.assembled, self.events = drop, list[float](), list[str]()

    def least_latency(self) -> float:
        return LEAST

    def best(
        self, requested: Sequence[budgets.Budget], count: int, tightened: Mapping[str, float] | None = None
    ) -> Any:
        (budget,) = requested
        share = int(20 * budget.amount * (tightened or {}).get(budget.resource, 1.0) + 1e-4) / 20
        if share < LEAST:
            raise InfeasibleBudgetError("the least possible: latency:0.2")
        self.assembled.append(share)
        metrics = SimpleNamespace(score=0.9 - self.drop(share))
        return SimpleNamespace(
            blocks={"conv": share},
            assembled=SimpleNamespace(metrics=metrics),
            report=ChoiceReport(0.0, 0.0, {"latency": share}),
        )

    def measure(self, proposal: Any, resources: Any) -> Any:
        return proposal

    def share(self, budget: budgets.Budget) -> float:
        return budget.amount


def shares(networks: Networks, max_drop: float) -> list[float | None]:
    """Return the shares of the latency that are chosen, from the boldest on; None stands for the teacher."""
    chosen = choosing.choices(networks, StudentConfig(max_drop=max_drop), 0.9)  # type: ignore[arg-type]
    return [each.accepted.get("conv") for each in chosen]  # type: ignore[misc]


def test_choices_are_the_fastest_networks_that_lose_8_3_and_1_times_as_much() -> None:
    networks = Networks(lambda share: 0.1 * (1 - share))
    bold, careful, certain = shares(networks, 0.01)
    assert bold == pytest.approx(LEAST), "loses 0.08"
    assert careful == pytest.approx(0.7), "loses 0.03"
    assert certain == pytest.approx(0.9), "loses 0.01"


def test_the_fastest_network_of_all_is_tried_first_and_only_once() -> None:
    networks = Networks(lambda _: 0.0)
    assert shares(networks, 0.01) == [LEAST], "there is nothing more careful to try"
    assert set(networks.assembled) == {LEAST}


def test_if_every_network_loses_too_much_the_teacher_is_left() -> None:
    networks = Networks(lambda _: 0.05)
    assert shares(networks, 0.01) == [LEAST, None]


def test_a_budget_gives_one_choice_and_is_repeated_under_a_tighter_limit_if_it_is_measured_too_slow() -> None:
    class Slow(Networks):
        def measure(self, proposal: Any, resources: Any) -> Any:
            self.events.append("measured")
            measured = {name: 1.2 * proposal.report.predicted[name] for name in resources}
            return SimpleNamespace(**vars(proposal) | {"report": SimpleNamespace(measured=measured)})

        def predict_for_networks_like(self, _: Any) -> None:
            pass

    networks = Slow(lambda _: 0.0)
    chosen = list(choosing.choices(networks, StudentConfig(budget=("latency:0.6",)), 0.9))  # type: ignore[arg-type]
    assert [each.accepted for each in chosen] == [{"conv": 0.5}]
    assert networks.events == ["measured", "measured"]


def test_a_more_careful_choice_is_fine_tuned_only_if_the_student_loses_too_much() -> None:
    class Builder:
        """Students of bolder choices lose more, fine-tuned or not."""

        display = SimpleNamespace(phase=lambda _: None)

        def __init__(self) -> None:
            self.built = list[Any]()

        def build(self, accepted: Any, _: Any) -> Any:
            self.built.append(accepted)
            return SimpleNamespace(metrics=SimpleNamespace(score=0.9 - accepted["conv"]))

    candidates = [choosing.Chosen({"conv": drop}, None) for drop in (0.08, 0.01, 0.0)]  # type: ignore[dict-item]
    builder = Builder()
    chosen, student = choosing.build(candidates, builder, 0.01, 0.9)  # type: ignore[arg-type]
    assert builder.built == [{"conv": 0.08}, {"conv": 0.01}]
    assert student.metrics.score == pytest.approx(0.89)
    assert chosen.events == ("a student loses 8.00 points of 1: a more careful choice",)
    assert choosing.build(candidates, builder, None, 0.9)[0].accepted == {"conv": 0.08}  # type: ignore[arg-type]
