"""Networks within a budget: the solver chooses their blocks, and they are assembled and compared."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import keras

from pbd.config import RunConfig, budgets
from pbd.deploy import targets
from pbd.deploy.targets import Target
from pbd.errors import InfeasibleBudgetError
from pbd.networks import cost
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, ChoiceReport, Layer
from pbd.student import candidates, costs_of_blocks, latency_costs, solver
from pbd.student.builder import Assembled
from pbd.student.candidates import Candidates, Costs, Piece
from pbd.student.latency_costs import LatencyTable

LATENCY = "latency"


def budget_target(name: str) -> Target:
    """Return the target that a budget of latency holds for; "auto" is the default target.

    Raises:
        UsageError: there is none of this name.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    return targets.default() if name == "auto" else targets.get_timed(name)


@dataclass(frozen=True)
class Proposal:
    """A choice of the solver, as an assembled network."""

    blocks: Mapping[str, BlockResult]
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
class Proposer:
    """Proposes networks of the blocks of a run.

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
    """What was proposed, and how predictions held."""
    _assembled: dict[frozenset[tuple[str, str]], Assembled] = field(default_factory=dict)
    _table: LatencyTable | None = None

    def best(self, requested: Sequence[budgets.Budget], count: int, tightened: float = 1.0) -> Proposal:
        """Return the best of the solver's first choices: the assembled network with the least divergence.

        Args:
            requested: the budgets.
            count: how many choices are assembled: damages of blocks add up only nearly.
            tightened: the limit of latency is multiplied by this factor.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        options, choices = self._choices(requested, count, tightened)
        proposals = [self._proposal(options, choice) for choice in choices]
        return min(proposals, key=lambda each: each.divergence)

    def check(self, requested: Sequence[budgets.Budget]) -> None:
        """Check whether budgets of what is counted, not measured, are possible.

        Raises:
            InfeasibleBudgetError: no choice keeps within them.
        """
        self._choices(requested, 1, 1.0)

    def measure(self, proposal: Proposal) -> Proposal:
        """Return the proposal with the latency of its network as a fraction of the teacher's, measured in turn."""
        networks = {"teacher": self.teacher, "student": proposal.assembled.model}
        seconds = latency_costs.seconds_of(networks, self._target, self.config.student.target_batch)
        report = replace(proposal.report, measured_latency=seconds["student"] / seconds["teacher"])
        shares = f"{100 * report.predicted[LATENCY]:.1f}% of the teacher's latency predicted"
        self.tell(f"{self._target.name}: {shares}, {100 * (report.measured_latency or math.inf):.1f}% measured")
        return replace(proposal, report=report)

    def predict_for_networks_like(self, proposal: Proposal) -> None:
        """Predict latencies from now on for networks as large as this one."""
        self._table = self._latencies().for_networks_like(proposal.pieces)

    def least_latency(self) -> float:
        """Return the least latency that is possible, as a fraction of the teacher's."""
        while True:
            options = self._candidates(latency=True)
            fastest = solver.cheapest(options.problem, LATENCY)
            if not self._measure_pieces(options.pieces(fastest.options)):
                return fastest.costs[LATENCY] / self._latencies().of_teacher

    def _choices(
        self, requested: Sequence[budgets.Budget], count: int, tightened: float
    ) -> tuple[Candidates, list[solver.Choice]]:
        """Return the candidates and the solver's first choices, all pieces of which were measured if latency counts.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        latency = any(each.resource == LATENCY for each in requested)
        while True:
            options = self._candidates(latency)
            limits = {each.resource: each.limit(self._of_teacher(each.resource)) for each in requested}
            if latency:
                limits[LATENCY] *= tightened
            try:
                choices = list(itertools.islice(solver.best(options.problem, limits), count))
            except solver.InfeasibleError as error:
                if latency and self._measure_pieces(self._pieces_of_the_fastest(options)):
                    continue
                raise self._refusal(requested, error) from error
            if not latency or not self._measure_pieces(p for each in choices for p in options.pieces(each.options)):
                return options, choices

    def _pieces_of_the_fastest(self, options: Candidates) -> list[Piece]:
        return options.pieces(solver.cheapest(options.problem, LATENCY).options)

    def _candidates(self, latency: bool) -> Candidates:
        """Return the candidates, with their latencies if those count."""
        counted = {resource: self._of_teacher(resource) for resource in ("macs", "params")}
        if not latency:
            return candidates.gather(self.tasks, self.results, costs_of_blocks.count, counted)
        table = self._latencies()

        def cost_of(layer: Layer, design: str | None, outputs: int) -> Costs:
            return {**costs_of_blocks.count(layer, design, outputs), **table.cost_of(layer, design, outputs)}

        whole = {**counted, LATENCY: table.predict(table.whole.chosen)}
        return candidates.gather(self.tasks, self.results, cost_of, whole)

    def _of_teacher(self, resource: str) -> float:
        if resource == LATENCY:
            return self._latencies().of_teacher
        return float((cost.count_macs if resource == "macs" else cost.count_params)(self.teacher))

    @property
    def _target(self) -> Target:
        return budget_target(self.config.execution.target)

    def _latencies(self) -> LatencyTable:
        """Return the latencies that were measured so far; the teacher's layers are, with the first call."""
        if self._table is None:
            layers = {task.layer.name: task.layer for task in self.tasks}
            self.display.phase(f"measuring the latency of the teacher and its layers in {self._target.name}")
            batch = self.config.student.target_batch
            self._table = latency_costs.latency_table(self.teacher, layers, self._target, batch)
        return self._table

    def _measure_pieces(self, used: Iterable[Piece]) -> bool:
        """Measure those of these pieces that were not; return whether there were any."""
        missing = self._latencies().unmeasured(used)
        if missing:
            self.display.phase(f"measuring the latency of {len(missing)} blocks in {self._target.name}")
            self._table = self._latencies().with_measured(missing)
        return bool(missing)

    def _proposal(self, options: Candidates, choice: solver.Choice) -> Proposal:
        designs = options.designs(choice.options)
        accepted = {layer: self.results[BlockKey(layer, design)] for layer, design in designs.items()}
        chosen = frozenset(designs.items())
        assembled = self._assembled.get(chosen) or self.assemble(accepted)
        shares = {resource: amount / self._of_teacher(resource) for resource, amount in choice.costs.items()}
        report = ChoiceReport(assembled.metrics.kl, choice.damage, shares)
        damage = f"the sum of its blocks' {choice.damage:.4f}; {_texts(shares)}"
        if chosen not in self._assembled:
            self._assembled[chosen] = assembled
            self.tell(f"a network within the budget: KL divergence {report.divergence:.4f}, {damage}")
        return Proposal(accepted, options.pieces(choice.options), assembled, report)

    def tell(self, event: str) -> None:
        """Keep an event for the report, and show it."""
        self.events.append(event)
        self.display.phase(event)

    def _refusal(self, requested: Sequence[budgets.Budget], error: solver.InfeasibleError) -> InfeasibleBudgetError:
        least = {name: amount / self._of_teacher(name) for name, amount in error.least.items()}
        feasible = ", ".join(f"{name}:{math.ceil(1000 * share) / 1000:g}" for name, share in least.items())
        together = ", each alone" if len(least) > 1 else ""
        return InfeasibleBudgetError(
            "a budget must be possible with the candidates. "
            f"Received: {', '.join(map(str, requested))}; the least possible: {feasible}{together}. "
            "Give a larger budget, or more designs with --block."
        )


def _texts(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f}% of the {budgets.RESOURCES[name]}" for name, share in shares.items())
