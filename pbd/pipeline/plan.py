"""Who trains what: predicted costs, and the assignment that rests on them."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pbd.blocks import BlockDesign
from pbd.blockwise.context import TrainingContext
from pbd.blockwise.train_group import train_group
from pbd.config import ExecutionConfig
from pbd.costs import calibration, memory
from pbd.errors import NoWorkersError
from pbd.executors.base import Executor
from pbd.pipeline.remote_tasks import AllReduceBenchmark, TrainGroupTask
from pbd.records import Assignment, BlockResult, BlockTask, ProgressCallback, TaskGroup
from pbd.scheduling import cutting, schedulers
from pbd.scheduling.cost_table import CostTable, Workload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """An assignment, and what it was made from."""

    assignment: Assignment
    predicted_from: str
    """What the predicted times rest on."""
    measured_costs: Callable[[Sequence[BlockResult], str], CostTable]
    """Returns the table with what results of this plan took, given them and the run directory."""
    why: str = ""
    """Why the workers share the work as they do; empty where there was no choice."""


def make_plan(
    config: ExecutionConfig,
    given: CostTable | None,
    context: TrainingContext,
    todo: Sequence[BlockTask],
    missing: Sequence[BlockTask],
    executor: Executor,
) -> Plan:
    """Predict, on a worker's device, what each layer takes, and share out those that are missing.

    Args:
        config: of the run.
        given: the table that `--costs` names, if it names one.
        context: what workers train with.
        todo: every layer that the run trains, those done before included.
        missing: those not done yet, one at least.
        executor: whose workers are to do it.
    """
    shareable, most = may_share(config, context.designs.values(), executor), context.data.batch_size
    exchange = AllReduceBenchmark(context, sum(task.params for task in missing))
    exchange_s = executor.run_collective(exchange, lambda event: None, most) if shareable else 0.0
    footprint = executor.call(functools.partial(memory.footprint, context, tuple(missing)))
    budget = footprint.budget(config.memory_limit)
    table, work = _predict(config, given, context, todo, executor)
    costs = table.costs(work, config.group)
    scheduler = schedulers.choose(config.scheduler, config.group, executor.elastic)
    whole = scheduler(missing, costs, executor.num_workers)
    assignment, why, collective = cutting.cut(whole, costs, budget.fits), "", 1
    if shareable:
        collective = min(executor.collective_size, most)
        shared = share(missing, table, work, collective, executor.num_workers, exchange_s, budget)
        why = explain(assignment, shared, exchange_s) if config.parallel != "data" else ""
        if config.parallel == "data" or shared.predicted_makespan_s < assignment.predicted_makespan_s:
            assignment = shared
    budget.check(assignment.groups, collective if assignment.shared else 1, most)
    if len(assignment.groups) > (1 if assignment.shared else len(whole.groups)):
        why = f"{why}{why and '; '}in {len(assignment.groups)} groups, to take at most {budget.describe} each"

    def measured(results: Sequence[BlockResult], run_dir: str) -> CostTable:
        return table.corrected(results, work, config.group, run_dir)

    return Plan(assignment, table.source, measured, why)


def _predict(
    config: ExecutionConfig,
    given: CostTable | None,
    context: TrainingContext,
    todo: Sequence[BlockTask],
    executor: Executor,
) -> tuple[CostTable, Workload]:
    """Return what each layer takes; a layer that loses the process that times it must not cost the run."""
    nothing_to_decide = config.parallel == "data" and may_share(config, context.designs.values(), executor)
    sharers = 1 if nothing_to_decide else executor.num_workers

    def predicting(how: str) -> Callable[[], tuple[CostTable, Workload]]:
        return functools.partial(calibration.predict, context, tuple(todo), how, given, sharers)

    try:
        return executor.call(predicting(config.costs))
    except NoWorkersError as error:
        _log.warning("calibration failed (%s): costs are estimated from multiply-accumulates.", error)
        return executor.call(predicting("macs"))


def carry_out(
    assignment: Assignment,
    context: TrainingContext,
    executor: Executor,
    emit: ProgressCallback,
) -> Iterator[BlockResult]:
    """Train the tasks as they are assigned; yield a result for each, some as soon as they are there."""
    if not assignment.shared:
        yield from executor.run(functools.partial(train_group, context), assignment, emit)
    else:
        began = time.monotonic()
        for group in assignment.groups:
            started_s = time.monotonic() - began
            for result in executor.run_collective(
                TrainGroupTask(context, group), emit, max_workers=context.data.batch_size
            ):
                yield dataclasses.replace(result, started_s=started_s)


def may_share(config: ExecutionConfig, designs: Iterable[BlockDesign], executor: Executor) -> bool:
    """Return whether all workers may train one group together: there are several, and nothing speaks against it.

    Where workers come and go it has to be asked for: with any of them, all lose what they have not finished.
    """
    free = config.parallel == "auto" and config.scheduler == "auto" and config.group and not executor.elastic
    wanted = free or config.parallel == "data"
    return wanted and executor.collective_size > 1 and all(design.per_image for design in designs)


def share(
    tasks: Sequence[BlockTask],
    table: CostTable,
    work: Workload,
    collective: int,
    workers: int,
    exchange_s: float,
    budget: memory.MemoryBudget,
) -> Assignment:
    """Return the assignment in which a collective trains all tasks together, each worker on its part of every batch.

    Args:
        tasks: one at least.
        table: what they take one worker.
        work: how many batches there are.
        collective: how many workers work together.
        workers: how many there are.
        exchange_s: what adding up the gradients takes, per step.
        budget: decides which tasks can be trained at once.
    """
    costs = table.shared(collective).costs(work, grouped=True)
    ordered = sorted(tasks, key=lambda task: task.layer.index)
    runs = cutting.runs(ordered, lambda run: budget.fits(run, collective))
    groups = tuple(TaskGroup(run, costs.load_s(run) + work.steps * exchange_s) for run in runs)
    load_s = sum(group.predicted_s or 0.0 for group in groups)
    return Assignment("shared", (groups, *[()] * (workers - 1)), (load_s,) * workers, shared=True)


def explain(by_task: Assignment, shared: Assignment, exchange_s: float) -> str:
    """Say what the two ways are predicted to take."""
    return (
        f"each its own layers: {by_task.predicted_makespan_s:.1f} s ({by_task.scheduler}); all layers together: "
        f"{shared.predicted_makespan_s:.1f} s, {1e3 * exchange_s:.1f} ms of every step to exchange gradients"
    )
