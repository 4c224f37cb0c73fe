"""Choose the blocks of the student: under a budget, or by the accuracy of each block alone."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras

from pbd.config import RunConfig, budgets
from pbd.errors import UsageError
from pbd.networks import cost
from pbd.pipeline.workers import WorkerPool
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask
from pbd.student import candidates, costs_of_blocks, selection, solver
from pbd.student.assemble import assemble

ASSEMBLED = 4
"""Choices of the solver that are assembled and compared: their damages add up only nearly."""


@dataclass(frozen=True)
class Chosen:
    """The accepted blocks, and why."""

    accepted: Mapping[str, BlockResult]
    """By layer."""
    lowest: float | None
    """The lowest validation accuracy (without labels, agreement) of an accepted block; None under a budget."""
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
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
        return self._within_budget(results)

    def _within_budget(self, results: Mapping[BlockKey, BlockResult]) -> Chosen:
        """Return the best of the solver's first choices, as validation of the assembled networks has it."""
        requested = [budgets.parse(text) for text in self.config.student.budget]
        of_teacher = {"macs": float(cost.count_macs(self.teacher)), "params": float(cost.count_params(self.teacher))}
        options = candidates.gather(self.tasks, results, costs_of_blocks.count, of_teacher)
        limits = {each.resource: each.limit(of_teacher[each.resource]) for each in requested}
        try:
            choices = list(itertools.islice(solver.best(options.problem, limits), ASSEMBLED))
        except solver.InfeasibleError as error:
            raise _refusal(requested, error, of_teacher) from error
        best_kl, best, events = math.inf, choices[0], []
        for number, choice in enumerate(choices, start=1):
            kl = self._divergence(options.designs(choice.options), results)
            measured = f"KL {kl:.4f} assembled, {choice.damage:.4f} summed"
            events.append(f"choice {number}: {measured}; {_shares(choice, of_teacher)}")
            self.display.phase(events[-1])
            if kl < best_kl:
                best_kl, best = kl, choice
        designs = options.designs(best.options)
        accepted = {layer: results[BlockKey(layer, design)] for layer, design in designs.items()}
        return Chosen(accepted, None, tuple(events))

    def _divergence(self, designs: Mapping[str, str], results: Mapping[BlockKey, BlockResult]) -> float:
        """Return the divergence from the teacher of a network with these blocks, after recalibration."""
        accepted = {layer: results[BlockKey(layer, design)] for layer, design in designs.items()}
        if not accepted:
            return 0.0
        metrics = self.workers.recalibrate(assemble(self.teacher, self.tasks, accepted))
        return metrics.kl if metrics.kl is not None and math.isfinite(metrics.kl) else math.inf


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


def _shares(choice: solver.Choice, of_teacher: Mapping[str, float]) -> str:
    shares = {budgets.RESOURCES[name]: 100 * amount / of_teacher[name] for name, amount in choice.costs.items()}
    return ", ".join(f"{share:.1f}% of the {name}" for name, share in shares.items())
