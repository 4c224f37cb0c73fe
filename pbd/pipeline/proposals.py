"""Networks within a budget: the solver chooses their blocks, and they are assembled and compared."""

import functools
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import keras

from pbd.blockwise.tasks import other_convolutions
from pbd.config import RunConfig, budgets
from pbd.config.budgets import BYTES, LATENCY
from pbd.deploy import targets
from pbd.deploy.latency import file_size
from pbd.deploy.targets import Target
from pbd.errors import InfeasibleBudgetError
from pbd.networks import cost
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, ChoiceReport, Layer
from pbd.student import candidates, costs_of_blocks, latency_costs, solver
from pbd.student.builder import Assembled
from pbd.student.candidates import Candidates, Costs, Piece
from pbd.student.latency_costs import LatencyTable

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


def _nothing(accepted: Mapping[str, BlockResult]) -> Assembled:
    raise AssertionError("a proposer that only checks budgets assembles nothing")


@dataclass
class Proposer:
    """Proposes networks of the blocks of a run.

    Args:
        teacher: flat and functional.
        tasks: the tasks of the run.
        results: the results of the tasks.
        config: the settings of the run.
        display: shows phases.
        assemble: assembles the student of accepted blocks; not needed to `check`.
    """

    teacher: keras.Model
    tasks: Sequence[BlockTask]
    results: Mapping[BlockKey, BlockResult]
    config: RunConfig
    display: ProgressDisplay
    assemble: Callable[[Mapping[str, BlockResult]], Assembled] = _nothing
    events: list[str] = field(default_factory=list)
    """What was proposed, and how predictions held."""
    _assembled: dict[frozenset[tuple[str, str]], Assembled] = field(default_factory=dict)
    _counted: dict[str, float] = field(default_factory=dict)
    _table: LatencyTable | None = None

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
        options, choices = self._choices(requested, count, tightened)
        proposals = [self._proposal(options, choice) for choice in choices]
        return min(proposals, key=lambda each: each.divergence)

    def check(self, requested: Sequence[budgets.Budget]) -> None:
        """Check whether budgets of what is counted, not measured, are possible.

        Raises:
            InfeasibleBudgetError: no choice keeps within them.
        """
        self._choices(requested, 1, {})

    def measure(self, proposal: Proposal, resources: Iterable[str]) -> Proposal:
        """Measure the assembled network; return the proposal with its latency or bytes as fractions of the teacher's.

        Args:
            proposal: a proposal of a budget of these resources.
            resources: latency, for which both networks take turns, or bytes.
        """
        networks = {"teacher": self.teacher, "student": proposal.assembled.model}
        measured = dict[str, float]()
        for resource in resources:
            amounts = (
                latency_costs.seconds_of(networks, self._target, self.config.student.target_batch)
                if resource == LATENCY
                else {name: file_size(network, self._target) for name, network in networks.items()}
            )
            measured[resource] = amounts["student"] / amounts["teacher"]
            predicted = f"{100 * proposal.report.predicted[resource]:.1f}% of the teacher's {resource} predicted"
            self.tell(f"{self._target.name}: {predicted}, {100 * measured[resource]:.1f}% measured")
        return replace(proposal, report=replace(proposal.report, measured=measured))

    def share(self, budget: budgets.Budget) -> float:
        """Return a budget as a fraction of what the teacher takes."""
        return budget.limit(self._of_teacher(budget.resource)) / self._of_teacher(budget.resource)

    def predict_for_networks_like(self, proposal: Proposal) -> None:
        """Predict latencies from now on for networks as large as this one."""
        if self._table is not None:
            self._table = self._table.for_networks_like(proposal.pieces)

    def least_latency(self) -> float:
        """Return the least latency that is possible, as a fraction of the teacher's."""
        while True:
            options = self._candidates({LATENCY})
            fastest = solver.cheapest(options.problem, LATENCY)
            if not self._measure_pieces(options.pieces(fastest.options)):
                return fastest.costs[LATENCY] / self._latencies().of_teacher

    def _choices(
        self, requested: Sequence[budgets.Budget], count: int, tightened: Mapping[str, float]
    ) -> tuple[Candidates, list[solver.Choice]]:
        """Return the candidates and the solver's first choices, all pieces of which were measured if latency counts.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        limited = {each.resource for each in requested}
        latency = LATENCY in limited
        limits = {each.resource: each.limit(self._of_teacher(each.resource)) for each in requested}
        limits = {resource: limit * tightened.get(resource, 1.0) for resource, limit in limits.items()}
        while True:
            options = self._candidates(limited)
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

    def _candidates(self, limited: Container[str]) -> Candidates:
        """Return the candidates with their costs: macs, params, and of `MEASURED` those that are limited."""
        whole = {name: self._of_teacher(name) for name in ("macs", "params", BYTES) if name in limited or name != BYTES}
        table = self._latencies() if LATENCY in limited else None
        if table is not None:
            whole[LATENCY] = table.of_kept_layers
        bytes_of_weight = 1 if self._target.int8 else 4

        def cost_of(layer: Layer, design: str | None, outputs: int) -> Costs:
            counted = costs_of_blocks.count(layer, design, outputs)
            weights = {}
            if BYTES in limited:
                weights[BYTES] = bytes_of_weight * self._folded.params(layer, design, outputs)
            behind = self._behind.get(layer.name, {})
            saved = costs_of_blocks.saved_behind(behind, layer, design, outputs) if behind else {}
            latency = {} if table is None else table.cost_of(layer, design, outputs)
            counted = {name: amount - saved.get(name, 0.0) for name, amount in counted.items()}
            return {**counted, **weights, **latency}

        return candidates.gather(self._layers.values(), self.results, cost_of, whole)

    @functools.cached_property
    def _layers(self) -> Mapping[str, Layer]:
        """The layers of the tasks, and other convolutions that depend on their blocks, by name."""
        others = other_convolutions(self.teacher, self.tasks)
        return {layer.name: layer for layer in (*(task.layer for task in self.tasks), *others)}

    @functools.cached_property
    def _behind(self) -> Mapping[str, Costs]:
        """The costs of the layers between a convolution and its only reader (see `costs_of_blocks.behind_layers`)."""
        return costs_of_blocks.behind_layers(self.teacher)

    @functools.cached_property
    def _folded(self) -> costs_of_blocks.Folded:
        """The teacher as its file holds it."""
        return costs_of_blocks.Folded.of(self.teacher)

    def _of_teacher(self, resource: str) -> float:
        """Return what the teacher takes of a resource."""
        if resource == LATENCY:
            return self._latencies().of_teacher
        if resource not in self._counted:
            counts: dict[str, Callable[[keras.Model], int]] = {"macs": cost.count_macs, "params": cost.count_params}
            counts[BYTES] = functools.partial(file_size, target=self._target)
            self._counted[resource] = float(counts[resource](self.teacher))
        return self._counted[resource]

    @property
    def _target(self) -> Target:
        return targets.of_budget(self.config.execution.target)

    def _latencies(self) -> LatencyTable:
        """Return the latencies that were measured so far; the teacher's layers are, with the first call."""
        if self._table is None:
            self.display.phase(f"measuring the latency of the teacher and its layers in {self._target.name}")
            batch = self.config.student.target_batch
            self._table = latency_costs.latency_table(self.teacher, self._layers, self._target, batch)
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
        assembled = self._assembled.pop(chosen, None) or self.assemble(accepted)
        self._assembled[chosen] = assembled  # the last one
        while len(self._assembled) > KEPT:
            self._assembled.pop(next(iter(self._assembled)))
        shares = {resource: amount / self._of_teacher(resource) for resource, amount in choice.costs.items()}
        report = ChoiceReport(assembled.metrics.kl, choice.damage, shares)
        damage = f"the sum of its blocks' {choice.damage:.4f}; {_texts(shares)}"
        event = f"a network within the budget: KL divergence {report.divergence:.4f}, {damage}"
        if event not in self.events:
            self.tell(event)
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
