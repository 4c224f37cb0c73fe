"""Choose the blocks of the student: under a budget, by what it may lose, or by the accuracy of each block alone."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import keras

from pbd.config import RunConfig, StudentConfig, budgets
from pbd.config.budgets import BYTES, LATENCY, MEASURED
from pbd.errors import InfeasibleBudgetError
from pbd.pipeline.budget_problem import BudgetProblem
from pbd.pipeline.kept_choices import KeptChoice, KeptChoices
from pbd.pipeline.proposals import Proposal, Proposer
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, ChoiceReport
from pbd.student import selection
from pbd.student.builder import Assembled, Student, StudentBuilder
from pbd.student.selection import ROUNDING

ASSEMBLED = 4
"""Choices of the solver that are assembled and compared."""
CORRECTIONS = 3
"""How often a choice that takes too much, as measured, is replaced by one under a tighter limit."""
TOLERANCE = {LATENCY: 1.02, BYTES: 1.0}
"""A choice takes too much if what is measured exceeds the limit by this factor."""
RECOVERED = (8.0, 3.0, 1.0)
"""With `max_drop`, an assembled network may lose so many times as much, because fine-tuning recovers some of it. The
first is tried first; with the last, fine-tuning need not recover anything."""
BISECTIONS = 4
"""Budgets between the fastest network and the teacher that are tried for each of these."""


@dataclass(frozen=True)
class Chosen:
    """The accepted blocks, and why."""

    accepted: Mapping[str, BlockResult]
    """The accepted blocks by layer."""
    lowest: float | None
    """The lowest validation accuracy (without labels, agreement) of an accepted block; `None` if they were chosen
    together."""
    events: tuple[str, ...] = ()
    assembled: Assembled | None = None
    """The student of these blocks, if it has been assembled."""
    report: ChoiceReport | None = None
    """The choice, if they were chosen together."""


def check_counted(
    config: RunConfig,
    display: ProgressDisplay,
    requested: Iterable[Sequence[str]],
    teacher: keras.Model,
    tasks: Sequence[BlockTask],
) -> None:
    """Check whether blocks can meet budgets of what is counted, not measured; no block needs to be trained for it.

    Args:
        config: the settings of the run.
        display: shows phases.
        requested: the budgets of each student.
        teacher: flat and functional.
        tasks: the tasks of the run.

    Raises:
        InfeasibleBudgetError: no choice keeps within the budgets of a student.
    """
    to_train = [task for task in tasks if task.skip_reason is None]
    perfect = {task.key: BlockResult(task.layer.name, "trained", task.design, val_kl=0.0) for task in to_train}
    problem = BudgetProblem(teacher, tasks, perfect, config, display)
    for texts in requested:
        counted = [budget for budget in map(budgets.parse, texts) if budget.resource not in MEASURED]
        if counted:
            problem.check(counted)


def choices(
    proposer: Proposer, kept: KeptChoices, settings: StudentConfig, teacher_score: float, scored_beside: float
) -> Iterator[Chosen]:
    """Yield the accepted blocks; with `max_drop` several choices, from the fastest to the most accurate one.

    Args:
        proposer: has the results of all blocks.
        kept: the choices of earlier sessions, which are not made again.
        settings: the settings of the student.
        teacher_score: the teacher's validation accuracy; without labels, 1.
        scored_beside: the same on the images on which the blocks were scored.

    Raises:
        InfeasibleBudgetError: no choice keeps within the budget.
    """
    if settings.budget:
        requested = [budgets.parse(text) for text in settings.budget]
        yield _once(proposer, kept, " ".join(settings.budget), lambda: _within(proposer, requested))
    elif settings.max_drop is not None:
        tried: Mapping[str, BlockResult] | None = None
        for factor in RECOVERED:
            lowest = teacher_score - factor * settings.max_drop
            chosen = _once(proposer, kept, f"accuracy:{lowest!r}", functools.partial(_fastest, proposer, lowest))
            if chosen.accepted != tried:
                yield chosen
            tried = chosen.accepted
    else:
        lowest = settings.lowest_accuracy(scored_beside)
        yield Chosen(selection.accept(proposer.problem.tasks, proposer.problem.results, lowest), lowest)


def build(
    candidates: Iterable[Chosen], builder: StudentBuilder, max_drop: float | None, teacher_score: float
) -> tuple[Chosen, Student]:
    """Return the first choice whose student loses at most `max_drop`, if it is limited, and the student.

    Args:
        candidates: see `choices`; with the last one, any student is returned.
        builder: assembles and fine-tunes.
        max_drop: see `StudentConfig`.
        teacher_score: see `choices`.
    """
    failed = list[str]()
    for chosen in candidates:
        if failed:
            builder.display.phase("a more careful choice")
        built = builder.build(chosen.accepted, chosen.assembled)
        drop = teacher_score - built.metrics.score
        if max_drop is None or drop <= max_drop + ROUNDING:
            break
        failed.append(f"a student loses {100 * drop:.2f} points, more than the {100 * max_drop:g} of max_drop")
        builder.display.phase(failed[-1])
    return replace(chosen, events=(*chosen.events, *failed)), built


def _once(proposer: Proposer, kept: KeptChoices, limit: str, propose: Callable[[], Proposal | None]) -> Chosen:
    """Return the choice that an earlier session made under a limit; if there is none, make and keep it."""
    before = kept.read(limit, proposer.problem.results)
    if before is None:
        chosen = _chosen(proposer, propose())
        designs = {layer: result.design for layer, result in chosen.accepted.items()}
        kept.write(limit, KeptChoice(designs, chosen.events, chosen.report))
        return chosen
    proposer.events[:] = before.events
    proposer.problem.display.phase(f"{len(before.designs)} blocks were chosen in an earlier session")
    accepted = {layer: proposer.problem.results[BlockKey(layer, design)] for layer, design in before.designs.items()}
    return Chosen(accepted, None, before.events, report=before.report)


def _chosen(proposer: Proposer, proposal: Proposal | None) -> Chosen:
    if proposal is None:
        return Chosen({}, None, tuple(proposer.events))
    return Chosen(proposal.blocks, None, tuple(proposer.events), proposal.assembled, proposal.report)


def _within(proposer: Proposer, requested: Sequence[budgets.Budget]) -> Proposal:
    """Return the best proposal; if a budget limits what is measured, one that keeps within it as measured.

    If none does, it is the one of those that were measured that exceeds its budgets least.
    """
    limits = {each.resource: proposer.problem.share(each) for each in requested if each.resource in MEASURED}
    if not limits:
        return proposer.best(requested, ASSEMBLED)
    measured = list[tuple[float, Proposal]]()
    tightened = dict.fromkeys(limits, 1.0)
    while len(measured) <= CORRECTIONS:
        try:
            best = proposer.measure(proposer.best(requested, ASSEMBLED, tightened), limits)
        except InfeasibleBudgetError as error:
            if not measured:
                raise
            proposer.tell(f"no choice keeps within the budget as measured: {error}")
            break
        excess = {name: best.report.measured[name] / limit for name, limit in limits.items()}
        measured.append((max(excess[name] / TOLERANCE[name] for name in limits), best))
        if measured[-1][0] <= 1.0:
            break
        # As much less as it was too much; the prediction is good enough to tell in which direction to go.
        tightened = {name: factor / max(excess[name], 1.0) for name, factor in tightened.items()}
        proposer.problem.predict_for_networks_like(best.pieces)
    return min(measured, key=lambda each: each[0])[1]


def _fastest(proposer: Proposer, lowest: float) -> Proposal | None:
    """Return the fastest network that reaches a validation accuracy before it is fine-tuned; `None` if none does.

    The budget of latency is bisected between the least possible one and that of the teacher.
    """
    too_small, enough = proposer.problem.least_latency(), math.inf
    share = too_small
    for _ in range(1 + BISECTIONS):
        proposal = proposer.best([_latency(share)], 1)
        if proposal.assembled.metrics.score >= lowest - ROUNDING:
            enough = share
        else:
            too_small = share
        if min(enough, 1.0) <= too_small:  # the fastest network may be predicted slower than the teacher
            break
        share = (too_small + min(enough, 1.0)) / 2
    if enough == math.inf:
        return None
    best = proposer.best([_latency(enough)], ASSEMBLED)
    if best.assembled.metrics.score < lowest - ROUNDING:
        best = proposer.best([_latency(enough)], 1)
    return proposer.measure(best, [LATENCY])


def _latency(share: float) -> budgets.Budget:
    return budgets.Budget(LATENCY, share * (1 + 1e-6))
