"""The plan of the block phase: data or task parallelism, predicted costs, and an assignment made from them."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pbd.blockwise.context import TrainingContext
from pbd.blockwise.train_group import train_group
from pbd.config import ExecutionConfig, RunConfig
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
    table: CostTable
    """The predicted costs."""
    work: Workload
    grouped: bool
    reason: str = ""
    """The reasons for the parallelism and for the number of groups; empty if neither was chosen."""

    @property
    def predicted_from(self) -> str:
        """The source of the predicted times."""
        return self.table.source

    def measured_costs(self, results: Sequence[BlockResult], run_dir: str) -> CostTable:
        """Return the cost table corrected by the results of this plan."""
        return self.table.corrected(results, self.work, self.grouped, run_dir)


@dataclass(frozen=True)
class Assigner:
    """Assigns the tasks of a run to its workers, for any costs; picklable."""

    tasks: tuple[BlockTask, ...]
    scheduler: Scheduler
    grouped: bool
    num_workers: int
    members: int | None
    """The size of the collective in data parallelism; `None` in task parallelism."""

    def assign(self, table: CostTable, work: Workload, budget: MemoryBudget | None = None) -> Assignment:
        """Return the assignment, with groups cut to fit into the budget if there is one."""
        if self.members is not None:
            return share(self.tasks, table, work, self.members, self.num_workers, budget=budget)
        costs = table.costs(work, self.grouped)
        whole = self.scheduler(self.tasks, costs, self.num_workers)
        return whole if budget is None else cutting.cut(whole, costs, budget.fits)

    def makespan_s(self, table: CostTable, work: Workload) -> float:
        """Return the predicted seconds of the block phase."""
        return self.assign(table, work).predicted_makespan_s


def make_plan(
    config: ExecutionConfig,
    requested_costs: CostTable | None,
    context: TrainingContext,
    tasks: Sequence[BlockTask],
    missing: Sequence[BlockTask],
    executor: Executor,
) -> Plan:
    """Choose the parallelism, predict the cost of each layer on a worker's device, and assign the missing tasks.

    Args:
        config: The execution settings of the run.
        requested_costs: The table in the file of `--costs`, if there is one.
        context: Everything the workers train with.
        tasks: All tasks of the run, including those already done.
        missing: The tasks to assign; at least one.
        executor: Its workers train the tasks.

    Raises:
        UsageError: A layer does not fit into the memory limit, or `requested_costs` was made for another run.
        NoWorkersError: The workers' processes were lost at every attempt.
    """
    batch_size = context.data.batch_size
    work, load_s = executor.call(functools.partial(calibration.load_workload, context, tuple(tasks)))
    # Measured before a calibration, whose graphs would count as memory in use.
    footprint = executor.call(functools.partial(memory.footprint, context, tuple(missing)))
    budget = footprint.budget(config.memory_limit)
    parallelism = choose_parallelism(config, context.can_share_batches, executor, work.steps)
    members = min(executor.collective_size, batch_size) if parallelism.data else None
    scheduler = schedulers.choose(config.scheduler, config.group, executor.elastic)
    assigner = Assigner(tuple(missing), scheduler, config.group, executor.num_workers, members)

    # The costs decide nothing in data parallelism or on a single worker, so a calibration would be wasted.
    makespan_s = assigner.makespan_s if members is None and executor.num_workers > 1 else None
    predict = functools.partial(calibration.predict, context, tuple(tasks), work, load_s, requested_costs, makespan_s)
    table = _predict_or_estimate(predict, config.costs, executor)
    assignment = assigner.assign(table, work, budget)
    budget.check(assignment.groups, members or 1, batch_size)
    reasons = [*parallelism.reasons, *_explain_cutting(assigner.assign(table, work), assignment, budget)]
    return Plan(assignment, table, work, config.group, "; ".join(reasons))


def check_costs(table: CostTable, config: RunConfig, tasks: Sequence[BlockTask]) -> None:
    """Check that a table was made with the settings of a run, before anything is written.

    The workers, which time the teacher as they run it, check later that it is the teacher of the table.

    Args:
        table: the table in the file of `--costs`.
        config: the settings of the run.
        tasks: the tasks of the run.

    Raises:
        UsageError: it was not, or a task is missing.
    """
    blocks, data = config.blocks, config.data
    conditions = dataclasses.replace(table.conditions, block_init=blocks.block_init, batch_size=data.batch_size)
    table.check(conditions, [task.key for task in tasks if task.skip_reason is None])


def _predict_or_estimate(predict: Callable[[str], CostTable], source: str, executor: Executor) -> CostTable:
    """Return the costs from this source, or an estimate if timing a layer ends the worker's process."""
    try:
        return executor.call(functools.partial(predict, source))
    except NoWorkersError as error:
        _log.warning("calibration failed (%s): costs are estimated from multiply-accumulates.", error.cause)
        return executor.call(functools.partial(predict, "macs"))


def _explain_cutting(whole: Assignment, cut: Assignment, budget: MemoryBudget) -> list[str]:
    """Return the reason for the number of groups, if groups were cut to fit into the memory budget."""
    if len(cut.groups) == len(whole.groups):
        return []
    return [f"{len(cut.groups)} groups of at most {budget.describe()} each"]


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
    """Reasons for the choice; empty if the settings or the executor leave none."""


def choose_parallelism(config: ExecutionConfig, can_share_batches: bool, executor: Executor, steps: int) -> Parallelism:
    """Choose between data and task parallelism.

    Data parallelism needs several workers that can share batches. On elastic executors it must be requested, because
    the loss of one worker repeats the group for all.

    Args:
        config: The execution settings; `parallel`, `scheduler` and `group` may decide.
        can_share_batches: See `TrainingContext.can_share_batches`.
        executor: Its workers train the tasks.
        steps: The number of training steps, over all epochs.
    """
    if not can_share_batches or executor.collective_size == 1 or config.parallel == "task":
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
        exchange_s: The seconds per step of the all-reduce of the gradients; a run does not measure it and uses 0.
        budget: Limits the tasks of a group; without it, all tasks form one group.
    """
    costs = table.shared(members).costs(work, grouped=True)
    ordered = sorted(tasks, key=lambda task: task.layer.index)
    runs = cutting.runs(ordered, lambda run: budget is None or budget.fits(run, members))
    groups = tuple(TaskGroup(run, costs.load_s(run) + work.steps * exchange_s) for run in runs)
    load_s = sum(group.predicted_s or 0.0 for group in groups)
    return Assignment("shared", (groups, *[()] * (num_workers - 1)), (load_s,) * num_workers, shared=True)
