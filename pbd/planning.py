"""Who trains what: predicted costs, and the assignment that rests on them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pbd import calibration
from pbd.config import ExecutionConfig
from pbd.executors.base import Executor
from pbd.records import Assignment, BlockResult, LayerTask
from pbd.scheduling import schedulers
from pbd.scheduling.cost_table import CostTable
from pbd.training import TrainingContext


@dataclass(frozen=True)
class Plan:
    """An assignment, and what it was made from."""

    assignment: Assignment
    predicted_from: str
    """What the predicted times rest on."""
    measured_costs: Callable[[Sequence[BlockResult], str], CostTable]
    """Returns the table with what results of this plan took, given them and the run directory."""


def make(
    config: ExecutionConfig,
    given: CostTable | None,
    context: TrainingContext,
    todo: Sequence[LayerTask],
    missing: Sequence[LayerTask],
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
    predict = functools.partial(calibration.predict, context, tuple(todo), config.costs, given, executor.num_workers)
    table, work = executor.call(predict)
    scheduler = schedulers.choose(config.scheduler, config.group, executor.elastic)
    assignment = scheduler(missing, table.costs(work, config.group), executor.num_workers)

    def measured(results: Sequence[BlockResult], run_dir: str) -> CostTable:
        return table.corrected(results, work, config.group, run_dir)

    return Plan(assignment, table.source, measured)
