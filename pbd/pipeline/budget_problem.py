"""The choice of blocks within budgets as a problem for the solver: candidates with their costs, and the limits."""

import functools
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
from pbd.records import BlockKey, BlockResult, BlockTask, Layer
from pbd.student import candidates, costs_of_blocks, latency_costs, solver
from pbd.student.candidates import Candidates, Costs, Piece
from pbd.student.latency_costs import LatencyTable


@dataclass
class BudgetProblem:
    """What the blocks of a run take of each resource, and the solver's choices among them.

    Latencies are measured when a choice needs them.

    Args:
        teacher: flat and functional.
        tasks: the tasks of the run.
        results: the results of the tasks.
        config: the settings of the run.
        display: shows phases.
    """

    teacher: keras.Model
    tasks: Sequence[BlockTask]
    results: Mapping[BlockKey, BlockResult]
    config: RunConfig
    display: ProgressDisplay
    _counted: dict[str, float] = field(default_factory=dict)
    _table: LatencyTable | None = None

    def check(self, requested: Sequence[budgets.Budget]) -> None:
        """Check whether budgets of what is counted, not measured, are possible.

        Raises:
            InfeasibleBudgetError: no choice keeps within them.
        """
        self.choices(requested, 1, {})

    def share(self, budget: budgets.Budget) -> float:
        """Return a budget as a fraction of what the teacher takes."""
        return budget.limit(self.of_teacher(budget.resource)) / self.of_teacher(budget.resource)

    def predict_for_networks_like(self, pieces: Sequence[Piece]) -> None:
        """Predict latencies from now on for networks as large as that of these pieces."""
        if self._table is not None:
            self._table = self._table.for_networks_like(pieces)

    def least_latency(self) -> float:
        """Return the least latency that is possible, as a fraction of the teacher's."""
        while True:
            options = self._candidates({LATENCY})
            fastest = solver.cheapest(options.problem, LATENCY)
            if not self._measure_pieces(options.pieces(fastest.options)):
                return fastest.costs[LATENCY] / self._latencies().of_teacher

    def choices(
        self, requested: Sequence[budgets.Budget], count: int, tightened: Mapping[str, float]
    ) -> tuple[Candidates, list[solver.Choice]]:
        """Return the candidates and the solver's first choices, all pieces of which were measured if latency counts.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        limited = {each.resource for each in requested}
        latency = LATENCY in limited
        limits = {each.resource: each.limit(self.of_teacher(each.resource)) for each in requested}
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
        whole = {name: self.of_teacher(name) for name in ("macs", "params", BYTES) if name in limited or name != BYTES}
        table = self._latencies() if LATENCY in limited else None
        if table is not None:
            whole[LATENCY] = table.of_kept_layers
        cost_of = functools.partial(self._cost_of, table, BYTES in limited)
        return candidates.gather(self._layers.values(), self.results, cost_of, whole)

    def _cost_of(
        self, table: LatencyTable | None, with_bytes: bool, layer: Layer, design: str | None, outputs: int
    ) -> Costs:
        """Return what a layer with a design (`None`: the layer itself) and so many output channels takes."""
        behind = self._behind.get(layer.name, {})
        saved = costs_of_blocks.saved_behind(behind, layer, design, outputs) if behind else {}
        counted = costs_of_blocks.count(layer, design, outputs)
        costs = {name: amount - saved.get(name, 0.0) for name, amount in counted.items()}
        if with_bytes:
            bytes_of_weight = 1 if self.target.int8 else 4
            costs[BYTES] = bytes_of_weight * self._folded.params(layer, design, outputs)
        if table is not None:
            costs.update(table.cost_of(layer, design, outputs))
        return costs

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

    def of_teacher(self, resource: str) -> float:
        """Return what the teacher takes of a resource."""
        if resource == LATENCY:
            return self._latencies().of_teacher
        if resource not in self._counted:
            counts: dict[str, Callable[[keras.Model], int]] = {"macs": cost.count_macs, "params": cost.count_params}
            counts[BYTES] = functools.partial(file_size, target=self.target)
            self._counted[resource] = float(counts[resource](self.teacher))
        return self._counted[resource]

    @property
    def target(self) -> Target:
        """The target of the budget of latency or bytes."""
        return targets.of_budget(self.config.execution.target)

    def _latencies(self) -> LatencyTable:
        """Return the latencies that were measured so far; the teacher's layers are, with the first call."""
        if self._table is None:
            self.display.phase(f"measuring the latency of the teacher and its layers in {self.target.name}")
            batch = self.config.student.target_batch
            self._table = latency_costs.latency_table(self.teacher, self._layers, self.target, batch)
        return self._table

    def _measure_pieces(self, used: Iterable[Piece]) -> bool:
        """Measure those of these pieces that were not; return whether there were any."""
        missing = self._latencies().unmeasured(used)
        if missing:
            self.display.phase(f"measuring the latency of {len(missing)} blocks in {self.target.name}")
            self._table = self._latencies().with_measured(missing)
        return bool(missing)

    def _refusal(self, requested: Sequence[budgets.Budget], error: solver.InfeasibleError) -> InfeasibleBudgetError:
        least = {name: amount / self.of_teacher(name) for name, amount in error.least.items()}
        feasible = ", ".join(f"{name}:{math.ceil(1000 * share) / 1000:g}" for name, share in least.items())
        together = ", each alone" if len(least) > 1 else ""
        return InfeasibleBudgetError(
            "a budget must be possible with the candidates. "
            f"Received: {', '.join(map(str, requested))}; the least possible: {feasible}{together}. "
            "Give a larger budget, or more designs with --block."
        )
