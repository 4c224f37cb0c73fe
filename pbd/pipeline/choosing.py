"""Choose the blocks of the student: under a budget, or by the accuracy of each block alone."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import keras

from pbd.config import RunConfig, budgets
from pbd.deploy import targets
from pbd.deploy.targets import Target
from pbd.errors import InfeasibleBudgetError
from pbd.networks import cost
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, ChoiceReport, Layer
from pbd.student import candidates, costs_of_blocks, latency_costs, selection, solver
from pbd.student.builder import Assembled
from pbd.student.candidates import Candidates, Costs, Piece
from pbd.student.latency_costs import LatencyTable

ASSEMBLED = 4
"""Choices of the solver that are assembled and compared: their damages add up only nearly."""
CORRECTIONS = 3
"""How often a choice that is measured to be too slow is replaced by one under a tighter limit."""
TOO_SLOW = 1.02
"""A choice is too slow if its measured latency exceeds the limit by this factor."""
LATENCY = "latency"


@dataclass(frozen=True)
class Chosen:
    """The accepted blocks, and why."""

    accepted: Mapping[str, BlockResult]
    """By layer."""
    lowest: float | None
    """The lowest validation accuracy (without labels, agreement) of an accepted block; None under a budget."""
    events: tuple[str, ...] = ()
    assembled: Assembled | None = None
    """The student of these blocks, if it has been assembled."""
    report: ChoiceReport | None = None
    """The choice under a budget."""


def budget_target(name: str) -> Target:
    """Return the target that a budget of latency holds for; "auto" is the default target.

    Raises:
        UsageError: there is none of this name.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    return targets.default() if name == "auto" else targets.get_timed(name)


@dataclass(frozen=True)
class _Proposal:
    """A choice of the solver, as an assembled network."""

    designs: Mapping[str, str]
    """By layer."""
    pieces: Sequence[Piece]
    assembled: Assembled
    report: ChoiceReport

    @property
    def divergence(self) -> float:
        """From the teacher."""
        return self.report.divergence if math.isfinite(self.report.divergence) else math.inf

    @property
    def share(self) -> float:
        """The latency as a fraction of the teacher's, as measured."""
        return math.inf if self.report.measured_latency is None else self.report.measured_latency


@dataclass
class Chooser:
    """Chooses the blocks of a run.

    Args:
        teacher: flat and functional.
        tasks: of the run.
        results: of the tasks.
        config: the settings of the run.
        display: shows phases.
        assemble: assembles the student of accepted blocks.
    """

    teacher: keras.Model
    tasks: Sequence[BlockTask]
    results: Mapping[BlockKey, BlockResult]
    config: RunConfig
    display: ProgressDisplay
    assemble: Callable[[Mapping[str, BlockResult]], Assembled]
    events: list[str] = field(default_factory=list)

    def choose(self, teacher_score: float) -> Chosen:
        """Return the accepted blocks.

        Args:
            teacher_score: the teacher's validation accuracy; without labels, 1.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budget.
        """
        if not self.config.student.budget:
            lowest = self.config.student.lowest_accuracy(teacher_score)
            return Chosen(selection.accept(self.tasks, self.results, lowest), lowest)
        best = self._within([budgets.parse(text) for text in self.config.student.budget])
        return Chosen(self._accepted(best.designs), None, tuple(self.events), best.assembled, best.report)

    def check_counted(self) -> None:
        """Check whether the budgets of what is counted, not measured, are possible.

        Raises:
            InfeasibleBudgetError: no choice keeps within them.
        """
        requested = [budgets.parse(text) for text in self.config.student.budget]
        counted = [budget for budget in requested if budget.resource != LATENCY]
        if counted:
            self._choices(counted, None, 1.0, 1)

    def _within(self, requested: Sequence[budgets.Budget]) -> _Proposal:
        """Return the best proposal; under a budget of latency, one that is measured to be fast enough.

        If none is, it is the fastest of those that were measured.
        """
        if all(budget.resource != LATENCY for budget in requested):
            return self._best(requested, None)
        target, batch = budget_target(self.config.execution.target), self.config.student.target_batch
        table = self._measured(target, batch)
        limit = next(budget.amount for budget in requested if budget.resource == LATENCY)
        measured: list[_Proposal] = []
        tightened = 1.0
        while len(measured) <= CORRECTIONS:
            try:
                best = self._best(requested, table, tightened)
            except InfeasibleBudgetError as error:
                if not measured:
                    raise
                self._tell(f"no choice is fast enough as measured: {error}")
                break
            best = self._measure(best, target, batch)
            measured.append(best)
            share = best.share
            if share <= TOO_SLOW * limit:
                break
            # As much faster as it was too slow; the prediction is good enough to tell in which direction to go.
            tightened *= limit / share
            table = table.for_networks_like(best.pieces)
        return min(measured, key=lambda each: each.share)

    def _measure(self, proposal: _Proposal, target: Target, batch: int) -> _Proposal:
        """Return the proposal with the latency of its network as a fraction of the teacher's, measured in turn."""
        networks = {"teacher": self.teacher, "student": proposal.assembled.model}
        seconds = latency_costs.seconds_of(networks, target, batch)
        report = replace(proposal.report, measured_latency=seconds["student"] / seconds["teacher"])
        shares = f"{100 * report.predicted[LATENCY]:.1f}% of the teacher's latency predicted"
        self._tell(f"{target.name}: {shares}, {100 * (report.measured_latency or math.inf):.1f}% measured")
        return replace(proposal, report=report)

    def _measured(self, target: Target, batch: int) -> LatencyTable:
        """Measure all pieces that networks under the budget can consist of."""
        asked = dict[Piece, None]()

        def note(layer: Layer, design: str | None, outputs: int) -> Costs:
            asked[layer.name, design, outputs] = None
            return {LATENCY: 0.0}

        layers = candidates.gather(self.tasks, self.results, note, {LATENCY: 0.0}).layers
        self.display.phase(f"measuring the latency of {len(asked)} layers and blocks in {target.name}")
        return latency_costs.latency_table(self.teacher, layers, asked, target, batch)

    def _best(
        self, requested: Sequence[budgets.Budget], table: LatencyTable | None, tightened: float = 1.0
    ) -> _Proposal:
        """Return the best of the solver's first choices: the assembled network with the least divergence."""
        options, choices, of_teacher = self._choices(requested, table, tightened, ASSEMBLED)
        proposals = [self._proposal(options, choice, of_teacher) for choice in choices]
        return min(proposals, key=lambda each: each.divergence)

    def _choices(
        self, requested: Sequence[budgets.Budget], table: LatencyTable | None, tightened: float, count: int
    ) -> tuple[Candidates, list[solver.Choice], Costs]:
        """Return the candidates, the solver's first choices, and the costs of the teacher.

        Args:
            requested: the budgets.
            table: predicts latency; None if no budget limits it.
            tightened: the limit of latency is multiplied by this factor.
            count: the number of choices.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        of_teacher = {"macs": float(cost.count_macs(self.teacher)), "params": float(cost.count_params(self.teacher))}
        if table is not None:
            of_teacher[LATENCY] = table.of_teacher

        def cost_of(layer: Layer, design: str | None, outputs: int) -> Costs:
            counted = costs_of_blocks.count(layer, design, outputs)
            return counted if table is None else {**counted, **table.cost_of(layer, design, outputs)}

        predicted = of_teacher if table is None else {**of_teacher, LATENCY: table.model.predict(table.teacher.chosen)}
        options = candidates.gather(self.tasks, self.results, cost_of, predicted)
        limits = {each.resource: each.limit(of_teacher[each.resource]) for each in requested}
        if LATENCY in limits:
            limits[LATENCY] *= tightened
        try:
            return options, list(itertools.islice(solver.best(options.problem, limits), count)), of_teacher
        except solver.InfeasibleError as error:
            raise _refusal(requested, error, of_teacher) from error

    def _proposal(self, options: Candidates, choice: solver.Choice, of_teacher: Costs) -> _Proposal:
        designs = options.designs(choice.options)
        assembled = self.assemble(self._accepted(designs))
        shares = {resource: amount / of_teacher[resource] for resource, amount in choice.costs.items()}
        report = ChoiceReport(assembled.metrics.kl, choice.damage, shares)
        damage = f"the sum of its blocks' {choice.damage:.4f}; {_texts(shares)}"
        self._tell(f"a network within the budget: KL divergence {report.divergence:.4f}, {damage}")
        return _Proposal(designs, options.pieces(choice.options), assembled, report)

    def _accepted(self, designs: Mapping[str, str]) -> dict[str, BlockResult]:
        return {layer: self.results[BlockKey(layer, design)] for layer, design in designs.items()}

    def _tell(self, event: str) -> None:
        self.events.append(event)
        self.display.phase(event)


def _refusal(
    requested: Sequence[budgets.Budget], error: solver.InfeasibleError, of_teacher: Mapping[str, float]
) -> InfeasibleBudgetError:
    least = {name: amount / of_teacher[name] for name, amount in error.least.items()}
    feasible = ", ".join(f"{name}:{math.ceil(1000 * share) / 1000:g}" for name, share in least.items())
    together = ", each alone" if len(least) > 1 else ""
    return InfeasibleBudgetError(
        "a budget must be possible with the candidates. "
        f"Received: {', '.join(map(str, requested))}; the least possible: {feasible}{together}. "
        "Give a larger budget, or more designs with --block."
    )


def _texts(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f}% of the {budgets.RESOURCES[name]}" for name, share in shares.items())
