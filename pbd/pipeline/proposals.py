"""Networks within a budget: the solver chooses their blocks, and they are assembled and compared."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pbd.config import budgets
from pbd.config.budgets import LATENCY
from pbd.deploy.latency import file_size
from pbd.pipeline.budget_problem import BudgetProblem
from pbd.records import BlockKey, BlockResult, ChoiceReport
from pbd.student import latency_costs, solver
from pbd.student.builder import Assembled
from pbd.student.candidates import Candidates, Piece

KEPT = 4
"""Assembled networks that are kept, since budgets that are nearly equal lead to the same ones."""


@dataclass(frozen=True)
class Proposal:
    """A choice of the solver, as an assembled network."""

    blocks: Mapping[str, BlockResult]
    """The blocks by layer."""
    pieces: Sequence[Piece]
    assembled: Assembled
    report: ChoiceReport

    @property
    def divergence(self) -> float:
        """KL divergence from the teacher; infinite if not finite."""
        return self.report.divergence if math.isfinite(self.report.divergence) else math.inf


@dataclass
class Proposer:
    """Proposes networks of the blocks of a run: the solver's choices, assembled.

    Args:
        problem: the candidates and their costs.
        assemble: assembles the student of accepted blocks.
    """

    problem: BudgetProblem
    assemble: Callable[[Mapping[str, BlockResult]], Assembled]
    events: list[str] = field(default_factory=list)
    """What was proposed, and how predictions held."""
    _assembled: dict[frozenset[tuple[str, str]], Assembled] = field(default_factory=dict)

    def best(
        self, requested: Sequence[budgets.Budget], count: int, tightened: Mapping[str, float] = MappingProxyType({})
    ) -> Proposal:
        """Return the best of the solver's first choices: the assembled network with the least divergence.

        Args:
            requested: the budgets.
            count: the number of choices that are assembled: damages of blocks add up only nearly.
            tightened: by resource, a factor for its limit.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        options, choices = self.problem.choices(requested, count, tightened)
        proposals = [self._proposal(options, choice) for choice in choices]
        return min(proposals, key=lambda each: each.divergence)

    def measure(self, proposal: Proposal, resources: Iterable[str]) -> Proposal:
        """Measure the assembled network; return the proposal with its latency or bytes as fractions of the teacher's.

        Args:
            proposal: a proposal of a budget of these resources.
            resources: latency, for which both networks take turns, or bytes.
        """
        target, batch = self.problem.target, self.problem.config.student.target_batch
        networks = {"teacher": self.problem.teacher, "student": proposal.assembled.model}
        measured = dict[str, float]()
        for resource in resources:
            amounts = (
                latency_costs.seconds_of(networks, target, batch)
                if resource == LATENCY
                else {name: file_size(network, target) for name, network in networks.items()}
            )
            measured[resource] = amounts["student"] / amounts["teacher"]
            predicted = f"{100 * proposal.report.predicted[resource]:.1f}% of the teacher's {resource} predicted"
            self.tell(f"{target.name}: {predicted}, {100 * measured[resource]:.1f}% measured")
        return replace(proposal, report=replace(proposal.report, measured=measured))

    def _proposal(self, options: Candidates, choice: solver.Choice) -> Proposal:
        designs = options.designs(choice.options)
        accepted = {layer: self.problem.results[BlockKey(layer, design)] for layer, design in designs.items()}
        chosen = frozenset(designs.items())
        assembled = self._assembled.pop(chosen, None) or self.assemble(accepted)
        self._assembled[chosen] = assembled  # the last one
        while len(self._assembled) > KEPT:
            self._assembled.pop(next(iter(self._assembled)))
        shares = {resource: amount / self.problem.of_teacher(resource) for resource, amount in choice.costs.items()}
        report = ChoiceReport(assembled.metrics.kl, choice.damage, shares)
        damage = f"the sum of its blocks' {choice.damage:.4f}; {_texts(shares)}"
        event = f"a network within the budget: KL divergence {report.divergence:.4f}, {damage}"
        if event not in self.events:
            self.tell(event)
        return Proposal(accepted, options.pieces(choice.options), assembled, report)

    def tell(self, event: str) -> None:
        """Keep an event for the report, and show it."""
        self.events.append(event)
        self.problem.display.phase(event)


def _texts(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f}% of the {budgets.RESOURCES[name]}" for name, share in shares.items())
