"""The plan of the block phase: data or task parallelism, predicted costs, and an assignment made from them."""

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
from pbd.costs.memory import MemoryBudget
from pbd.errors import NoWorkersError
from pbd.executors.base import Executor
from pbd.pipeline.remote_tasks import TrainGroupTask
from pbd.records import Assignment, BlockResult, BlockTask, ProgressCallback, TaskGroup
from pbd.scheduling import cutting, schedulers
from pbd.scheduling.cost_table import CostTable, Workload
from pbd.scheduling.schedulers import Scheduler

_log = logging.getLogger(__name__)

# Measured: data parallelism was faster in every full-size job. In a job of 28 steps task parallelism was faster (22
# against 27 s), because with data parallelism every worker initialises and traces all blocks.
MIN_DATA_PARALLEL_STEPS = 300
"""The number of training steps from which data parallelism is chosen."""


@dataclass(frozen=True)
class Plan:
    """An assignment, its predicted costs, and the reasons for it."""

    assignment: Assignment
    predicted_from: str
    """The source of the predicted times."""
    measured_costs: Callable[[Sequence[BlockResult], str], CostTable]
    """Returns the cost table corrected by the results of this plan; also takes the run directory."""
    reason: str = ""
    """The reasons for the parallelism and for the number of groups; empty if neither was chosen."""


def make_plan(
    config: ExecutionConfig,
    given_costs: CostTable | None,
    context: TrainingContext,
    tasks: Sequence[BlockTask],
    missing: Sequence[BlockTask],
    executor: Executor,
) -> Plan:
    """Choose the parallelism, predict the cost of each layer on a worker's device, and assign the missing tasks.

    Args:
        config: The execution settings of the run.
        given_costs: The table in the file of `--costs`, if there is one.
        context: Everything the workers train with.
        tasks: All tasks of the run, including those already done.
        missing: The tasks to assign; at least one.
        executor: Its workers train the tasks.

    Raises:
        UsageError: A layer does not fit into the memory limit, or `given_costs` was made for another run.
        NoWorkersError: The workers' processes were lost at every attempt.
    """
    work, load_s = executor.call(functools.partial(calibration.load_workload, context, tuple(tasks)))
    footprint = executor.call(functools.partial(memory.footprint, context, tuple(missing)))
    budget = footprint.budget(config.memory_limit)
    parallelism = choose_parallelism(config, context.designs.values(), executor, work.steps)
    scheduler = schedulers.choose(config.scheduler, config.group, executor.elastic)

    makespan_s = None  # without a choice between assignments, a calibration would be wasted
    if not parallelism.data and executor.num_workers > 1:
        makespan_s = functools.partial(_makespan_s, scheduler, tuple(missing), executor.num_workers, config.group)
    predict = functools.partial(calibration.predict, context, tuple(tasks), work, load_s, given_costs, makespan_s)
    table = _predict_or_estimate(predict, config.costs, executor)

    members = min(executor.collective_size, context.data.batch_size) if parallelism.data else 1
    if parallelism.data:
        whole = share(missing, table, work, members, executor.num_workers)
        assignment = share(missing, table, work, members, executor.num_workers, budget=budget)
    else:
        costs = table.costs(work, config.group)
        whole = scheduler(missing, costs, executor.num_workers)
        assignment = cutting.cut(whole, costs, budget.fits)
    budget.check(assignment.groups, members, context.data.batch_size)

    reasons = [*parallelism.reasons, *_explain_cutting(whole, assignment, budget)]
    measured_costs = functools.partial(_corrected, table, work, config.group)
    return Plan(assignment, table.source, measured_costs, "; ".join(reasons))


def _makespan_s(
    scheduler: Scheduler,
    tasks: Sequence[BlockTask],
    num_workers: int,
    grouped: bool,
    table: CostTable,
    work: Workload,
) -> float:
    """Return the predicted seconds of the block phase with task parallelism."""
    return scheduler(tasks, table.costs(work, grouped), num_workers).predicted_makespan_s


def _predict_or_estimate(predict: Callable[[str], CostTable], source: str, executor: Executor) -> CostTable:
    """Return the costs from this source, or an estimate if timing a layer ends the worker's process."""
    try:
        return executor.call(functools.partial(predict, source))
    except NoWorkersError as error:
        _log.warning("calibration failed (%s): costs are estimated from multiply-accumulates.", error)
        return executor.call(functools.partial(predict, "macs"))


def _explain_cutting(whole: Assignment, cut: Assignment, budget: MemoryBudget) -> list[str]:
    """Return the reason for the number of groups, if groups were cut to fit into the memory budget."""
    if len(cut.groups) == len(whole.groups):
        return []
    return [f"{len(cut.groups)} groups of at most {budget.describe()} each"]


def _corrected(
    table: CostTable, work: Workload, grouped: bool, results: Sequence[BlockResult], run_dir: str
) -> CostTable:
    return table.corrected(results, work, grouped, run_dir)


def carry_out(
    assignment: Assignment,
    context: TrainingContext,
    executor: Executor,
    emit: ProgressCallback,
) -> Iterator[BlockResult]:
    """Train the tasks as assigned; yield the results as they arrive."""
    if not assignment.shared:
        yield from executor.run(functools.partial(train_group, context), assignment, emit)
    else:
        phase_began = time.monotonic()
        for group in assignment.groups:
            started_s = time.monotonic() - phase_began
            for result in executor.run_collective(
                TrainGroupTask(context, group), emit, max_workers=context.data.batch_size
            ):
                yield dataclasses.replace(result, started_s=started_s)


@dataclass(frozen=True)
class Parallelism:
    """Data parallelism, or else task parallelism."""

    data: bool
    reasons: tuple[str, ...] = ()
    """For the choice; empty if the settings or the executor leave none."""


def choose_parallelism(
    config: ExecutionConfig, designs: Iterable[BlockDesign], executor: Executor, steps: int
) -> Parallelism:
    """Choose between data and task parallelism.

    Data parallelism needs several workers and per-image designs. On elastic executors it must be requested, because
    the loss of one worker repeats the group for all.

    Args:
        config: The execution settings; `parallel`, `scheduler` and `group` may decide.
        designs: The block designs of the run.
        executor: Its workers train the tasks.
        steps: The number of training steps, over all epochs.
    """
    possible = executor.collective_size > 1 and all(design.per_image for design in designs)
    if not possible or config.parallel == "task":
        return Parallelism(data=False)
    if config.parallel == "data":
        return Parallelism(data=True)
    if config.scheduler != "auto" or not config.group or executor.elastic:
        return Parallelism(data=False)
    data = steps >= MIN_DATA_PARALLEL_STEPS
    return Parallelism(data, (explain(data, steps),))


def explain(data: bool, steps: int) -> str:
    """Return the reason for the chosen parallelism, for the progress line."""
    if data:
        return f"data parallelism: {steps:,} steps, at least {MIN_DATA_PARALLEL_STEPS}"
    return f"task parallelism: {steps:,} steps, fewer than {MIN_DATA_PARALLEL_STEPS}"


def share(
    tasks: Sequence[BlockTask],
    table: CostTable,
    work: Workload,
    members: int,
    num_workers: int,
    exchange_s: float = 0.0,
    budget: MemoryBudget | None = None,
) -> Assignment:
    """Return the assignment in which one collective trains all tasks, each member on its part of every batch.

    Args:
        tasks: At least one.
        table: The costs on one worker.
        work: The number of batches.
        members: The size of the collective.
        num_workers: The number of workers of the executor; workers outside the collective get no group.
        exchange_s: The seconds per step for adding up the gradients; a run does not measure them.
        budget: Limits the tasks of a group; without it, all tasks form one group.
    """
    costs = table.shared(members).costs(work, grouped=True)
    ordered = sorted(tasks, key=lambda task: task.layer.index)
    runs = cutting.runs(ordered, lambda run: budget is None or budget.fits(run, members))
    groups = tuple(TaskGroup(run, costs.load_s(run) + work.steps * exchange_s) for run in runs)
    load_s = sum(group.predicted_s or 0.0 for group in groups)
    return Assignment("shared", (groups, *[()] * (num_workers - 1)), (load_s,) * num_workers, shared=True)
