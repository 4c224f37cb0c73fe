"""With `max_drop`: which networks are tried, and which one is chosen, by their latency and what they lose."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pbd.config import StudentConfig, budgets
from pbd.errors import InfeasibleBudgetError
from pbd.pipeline import choosing
from pbd.pipeline.kept_choices import FOLDER, KeptChoice, KeptChoices
from pbd.records import BlockKey, BlockResult, ChoiceReport
from pbd.run_dir.journal import Journal

LEAST = 0.2
"""The least latency that is possible, as a fraction of the teacher's."""


class Networks:
    """Networks of twenty latencies: each loses as much accuracy as `drop` says of its share of the latency.

    The only layer, `conv`, has a block for each of them, whose design is the share.
    """

    display = SimpleNamespace(phase=lambda _: None)
    results: ClassVar = {
        BlockKey("conv", f"{n / 20:g}"): BlockResult("conv", "trained", f"{n / 20:g}", val_kl=1 - n / 20)
        for n in range(21)
    }

    def __init__(self, drop: Any, least: float = LEAST) -> None:
        self.drop, self.least, self.assembled, self.events = drop, least, list[float](), list[str]()
        self.problem = self  # it stands for a proposer and for its problem

    def least_latency(self) -> float:
        return self.least

    def best(
        self, requested: Sequence[budgets.Budget], count: int, tightened: Mapping[str, float] | None = None
    ) -> Any:
        (budget,) = requested
        share = int(20 * budget.amount * (tightened or {}).get(budget.resource, 1.0) + 1e-4) / 20
        if budget.amount * (tightened or {}).get(budget.resource, 1.0) < self.least:
            raise InfeasibleBudgetError(f"the least possible: latency:{self.least}")
        self.assembled.append(share)
        metrics = SimpleNamespace(score=0.9 - self.drop(share))
        return SimpleNamespace(
            blocks={"conv": self.results[BlockKey("conv", f"{share:g}")]},
            pieces=(),
            assembled=SimpleNamespace(metrics=metrics),
            report=ChoiceReport(0.0, 0.0, {"latency": share}),
        )

    def measure(self, proposal: Any, resources: Any) -> Any:
        return proposal

    def share(self, budget: budgets.Budget) -> float:
        return budget.amount


@pytest.fixture
def kept(tmp_path: Path) -> KeptChoices:
    """Return the choices of a run that has made none yet."""
    return KeptChoices(Journal(tmp_path), {"candidates": 21})


def choose(networks: Networks, kept: KeptChoices, **settings: Any) -> Iterator[choosing.Chosen]:
    return choosing.choices(networks, kept, StudentConfig(**settings), 0.9, 0.9)  # type: ignore[arg-type]


def share_of(chosen: choosing.Chosen) -> float | None:
    """Return the share of the latency that is chosen; None stands for the teacher."""
    return float(chosen.accepted["conv"].design) if chosen.accepted else None


def shares(networks: Networks, kept: KeptChoices, max_drop: float) -> list[float | None]:
    """Return the shares that are chosen, from the boldest on."""
    return [share_of(each) for each in choose(networks, kept, max_drop=max_drop)]


def test_choices_are_the_fastest_networks_that_lose_8_3_and_1_times_as_much(kept: KeptChoices) -> None:
    networks = Networks(lambda share: 0.1 * (1 - share))
    bold, careful, certain = shares(networks, kept, 0.01)
    assert bold == pytest.approx(LEAST), "loses 0.08"
    assert careful == pytest.approx(0.7), "loses 0.03"
    assert certain == pytest.approx(0.9), "loses 0.01"


def test_the_fastest_network_of_all_is_tried_first_and_only_once(kept: KeptChoices) -> None:
    networks = Networks(lambda _: 0.0)
    assert shares(networks, kept, 0.01) == [LEAST], "there is nothing more careful to try"
    assert set(networks.assembled) == {LEAST}


def test_if_every_network_loses_too_much_the_teacher_is_left(kept: KeptChoices) -> None:
    networks = Networks(lambda _: 0.05)
    assert shares(networks, kept, 0.01) == [LEAST, None]


def test_a_network_that_is_predicted_slower_than_the_teacher_is_not_searched_below_it(kept: KeptChoices) -> None:
    networks = Networks(lambda _: 0.05, least=1.01)
    assert shares(networks, kept, 0.01) == [1.0, None]


def test_a_budget_gives_one_choice_and_is_repeated_under_a_tighter_limit_if_it_is_measured_too_slow(
    kept: KeptChoices,
) -> None:
    class Slow(Networks):
        def measure(self, proposal: Any, resources: Any) -> Any:
            self.events.append("measured")
            measured = {name: 1.2 * proposal.report.predicted[name] for name in resources}
            return SimpleNamespace(**vars(proposal) | {"report": replace(proposal.report, measured=measured)})

        def predict_for_networks_like(self, _: Any) -> None:
            pass

    networks = Slow(lambda _: 0.0)
    (chosen,) = choose(networks, kept, budget=("latency:0.6",))
    assert share_of(chosen) == 0.5
    assert networks.events == ["measured", "measured"]


@pytest.mark.parametrize("settings", [{"max_drop": 0.01}, {"budget": ("macs:0.6",)}])
def test_a_resumed_run_does_not_choose_again(kept: KeptChoices, settings: dict[str, Any]) -> None:
    networks, resumed = Networks(lambda share: 0.1 * (1 - share)), Networks(lambda share: 0.0)
    networks.events.append("proposed")
    first, second = (list(choose(each, kept, **settings)) for each in (networks, resumed))
    assert resumed.assembled == []
    assert [share_of(each) for each in second] == [share_of(each) for each in first]
    assert [(each.events, each.report) for each in second] == [(each.events, each.report) for each in first]
    assert all(each.events == ("proposed",) for each in second)


def test_a_resumed_run_goes_on_where_the_choices_of_the_earlier_session_end(kept: KeptChoices) -> None:
    networks, resumed = Networks(lambda share: 0.1 * (1 - share)), Networks(lambda share: 0.1 * (1 - share))
    assert share_of(next(choose(networks, kept, max_drop=0.01))) == pytest.approx(LEAST)
    assert shares(resumed, kept, 0.01) == [pytest.approx(share) for share in (LEAST, 0.7, 0.9)]
    assert resumed.assembled, "the second and the third choice are new"


@pytest.mark.parametrize("change", ["limit", "candidates", "damage", "another block", "no candidate"])
def test_blocks_are_chosen_again_if_what_the_choice_rests_on_has_changed(kept: KeptChoices, change: str) -> None:
    budget, again = ("macs:0.6",), Networks(lambda _: 0.0)
    list(choose(Networks(lambda _: 0.0), kept, budget=budget))
    if change == "limit":
        budget = ("macs:0.7",)
    elif change == "candidates":
        kept = replace(kept, basis={"candidates": 22})
    else:
        (file,) = kept.journal.file(FOLDER).iterdir()
        whole = file.read_bytes()
        if change == "no candidate":
            kept.write(" ".join(budget), KeptChoice({"conv": "0.61"}, (), None))
        else:
            damaged = whole[:-20] if change == "damage" else whole.replace(b'"conv": "0.6"', b'"conv": "0.2"')
            file.write_bytes(damaged)
        assert file.read_bytes() != whole
    list(choose(again, kept, budget=budget))
    assert again.assembled


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
    assert chosen.events == ("a student loses 8.00 points, more than the 1 of max_drop",)
    assert choosing.build(candidates, builder, None, 0.9)[0].accepted == {"conv": 0.08}  # type: ignore[arg-type]
