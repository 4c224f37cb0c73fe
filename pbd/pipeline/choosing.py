"""Choose the blocks of the student: under a budget, or by the accuracy of each block alone."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras

from pbd.config import RunConfig, budgets
from pbd.deploy import targets
from pbd.deploy.targets import Target
from pbd.errors import UsageError
from pbd.networks import cost
from pbd.pipeline.workers import WorkerPool
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, Layer
from pbd.student import candidates, costs_of_blocks, latency_costs, selection, solver
from pbd.student.assemble import assemble
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


def budget_target(name: str) -> Target:
    """Return the target that a budget of latency holds for; "auto" is the default target.

    Raises:
        UsageError: there is none of this name.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    return targets.default() if name == "auto" else targets.get_timed(name)


@dataclass
class Chooser:
    """Chooses the blocks of a run.

    Args:
        teacher: flat and functional.
        tasks: of the run.
        config: the settings of the run.
        display: shows phases.
        workers: recalibrate and validate assembled networks.
    """

    teacher: keras.Model
    tasks: Sequence[BlockTask]
    config: RunConfig
    display: ProgressDisplay
    workers: WorkerPool
    events: list[str] = field(default_factory=list)

    def choose(self, results: Mapping[BlockKey, BlockResult], teacher_score: float) -> Chosen:
        """Return the accepted blocks.

        Args:
            results: of the tasks.
            teacher_score: the teacher's validation accuracy; without labels, 1.

        Raises:
            UsageError: no choice keeps within the budget.
        """
        if not self.config.student.budget:
            lowest = self.config.student.lowest_accuracy(teacher_score)
            return Chosen(selection.accept(self.tasks, results, lowest), lowest)
        designs = self._within_budget(results)
        accepted = {layer: results[BlockKey(layer, design)] for layer, design in designs.items()}
        return Chosen(accepted, None, tuple(self.events))

    def _within_budget(self, results: Mapping[BlockKey, BlockResult]) -> dict[str, str]:
        """Return the designs of the best choice; under a budget of latency, one that is measured to be fast enough.

        If none is, it is the fastest of those that were measured.
        """
        requested = [budgets.parse(text) for text in self.config.student.budget]
        if all(budget.resource != LATENCY for budget in requested):
            return self._best(requested, results, None)[0]
        target, batch = budget_target(self.config.execution.target), self.config.student.target_batch
        table = self._measured(results, target, batch)
        limit = next(budget.amount for budget in requested if budget.resource == LATENCY)
        measured: list[tuple[float, dict[str, str]]] = []
        tightened = 1.0
        while len(measured) <= CORRECTIONS:
            try:
                designs, pieces = self._best(requested, results, table, tightened)
            except UsageError as error:
                if not measured:
                    raise
                self._tell(f"no choice is fast enough as measured: {error}")
                break
            predicted, share = table.predict(pieces) / table.of_teacher, self._share(designs, results, target, batch)
            shares = f"{100 * predicted:.1f}% of the teacher's latency predicted, {100 * share:.1f}% measured"
            self._tell(f"{target.name}: {shares}")
            measured.append((share, designs))
            if share <= TOO_SLOW * limit:
                break
            # As much faster as it was too slow; the prediction is good enough to tell in which direction to go.
            tightened *= limit / share
            table = table.for_networks_like(pieces)
        return min(measured, key=lambda each: each[0])[1]

    def _share(
        self, designs: Mapping[str, str], results: Mapping[BlockKey, BlockResult], target: Target, batch: int
    ) -> float:
        """Return the latency of a network as a fraction of the teacher's, measured in turn."""
        networks = {"teacher": self.teacher, "student": self._assembled(designs, results)}
        seconds = latency_costs.seconds_of(networks, target, batch)
        return seconds["student"] / seconds["teacher"]

    def _measured(self, results: Mapping[BlockKey, BlockResult], target: Target, batch: int) -> LatencyTable:
        """Measure all pieces that networks under the budget can consist of."""
        asked = dict[Piece, None]()

        def note(layer: Layer, design: str | None, outputs: int) -> Costs:
            asked[layer.name, design, outputs] = None
            return {LATENCY: 0.0}

        layers = candidates.gather(self.tasks, results, note, {LATENCY: 0.0}).layers
        self.display.phase(f"measuring the latency of {len(asked)} layers and blocks in {target.name}")
        return latency_costs.latency_table(self.teacher, layers, asked, target, batch)

    def _best(
        self,
        requested: Sequence[budgets.Budget],
        results: Mapping[BlockKey, BlockResult],
        table: LatencyTable | None,
        tightened: float = 1.0,
    ) -> tuple[dict[str, str], list[Piece]]:
        """Return designs and pieces of the best of the solver's first choices, as validation of the networks has it.

        Args:
            requested: the budgets.
            results: of the tasks.
            table: predicts latency; None if no budget limits it.
            tightened: the limit of latency is multiplied by this factor.
        """
        of_teacher = {"macs": float(cost.count_macs(self.teacher)), "params": float(cost.count_params(self.teacher))}
        if table is not None:
            of_teacher[LATENCY] = table.of_teacher

        def cost_of(layer: Layer, design: str | None, outputs: int) -> Costs:
            counted = costs_of_blocks.count(layer, design, outputs)
            return counted if table is None else {**counted, **table.cost_of(layer, design, outputs)}

        predicted = of_teacher if table is None else {**of_teacher, LATENCY: table.model.predict(table.teacher.chosen)}
        options = candidates.gather(self.tasks, results, cost_of, predicted)
        limits = {each.resource: each.limit(of_teacher[each.resource]) for each in requested}
        if LATENCY in limits:
            limits[LATENCY] *= tightened
        try:
            choices = list(itertools.islice(solver.best(options.problem, limits), ASSEMBLED))
        except solver.InfeasibleError as error:
            raise _refusal(requested, error, of_teacher) from error
        divergences = [self._divergence(options, choice, results, of_teacher) for choice in choices]
        best = choices[divergences.index(min(divergences))]
        return options.designs(best.options), options.pieces(best.options)

    def _divergence(
        self, options: Candidates, choice: solver.Choice, results: Mapping[BlockKey, BlockResult], of_teacher: Costs
    ) -> float:
        """Return the divergence from the teacher of the network of a choice, after recalibration."""
        designs = options.designs(choice.options)
        kl = 0.0
        if designs:
            metrics = self.workers.recalibrate(self._assembled(designs, results))
            kl = metrics.kl if metrics.kl is not None and math.isfinite(metrics.kl) else math.inf
        divergence = f"KL divergence {kl:.4f}, the sum of its blocks' {choice.damage:.4f}"
        self._tell(f"a network within the budget: {divergence}; {_shares(choice, of_teacher)}")
        return kl

    def _assembled(self, designs: Mapping[str, str], results: Mapping[BlockKey, BlockResult]) -> keras.Model:
        accepted = {layer: results[BlockKey(layer, design)] for layer, design in designs.items()}
        return assemble(self.teacher, self.tasks, accepted)

    def _tell(self, event: str) -> None:
        self.events.append(event)
        self.display.phase(event)


def _refusal(
    requested: Sequence[budgets.Budget], error: solver.InfeasibleError, of_teacher: Mapping[str, float]
) -> UsageError:
    least = {name: amount / of_teacher[name] for name, amount in error.least.items()}
    feasible = ", ".join(f"{name}:{math.ceil(1000 * share) / 1000:g}" for name, share in least.items())
    together = ", each alone" if len(least) > 1 else ""
    return UsageError(
        "a budget must be possible with the candidates. "
        f"Received: {', '.join(map(str, requested))}; the least possible: {feasible}{together}. "
        "Give a larger budget, or more designs with --block."
    )


def _shares(choice: solver.Choice, of_teacher: Costs) -> str:
    shares = {budgets.RESOURCES[name]: 100 * amount / of_teacher[name] for name, amount in choice.costs.items()}
    return ", ".join(f"{share:.1f}% of the {name}" for name, share in shares.items())
