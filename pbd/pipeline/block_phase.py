"""The block phase of a run: plan which worker trains which blocks, train them, and keep what it has cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbd.blockwise.context import TrainingContext
from pbd.pipeline.plan import carry_out, make_plan
from pbd.pipeline.run_context import RunContext
from pbd.records import Assignment, BlockKey, BlockResult, BlockTask, WorkerReport
from pbd.report import rows


@dataclass(frozen=True)
class TrainedBlocks:
    """The blocks that this session trained, without those of earlier sessions, and the assignment that it used."""

    results: Sequence[BlockResult]
    assignment: Assignment
    predicted_from: str
    workers: Sequence[WorkerReport]


def train(
    run: RunContext, context: TrainingContext, todo: Sequence[BlockTask], done: Mapping[BlockKey, BlockResult]
) -> TrainedBlocks:
    """Plan the block phase, train the missing blocks, and write the measured costs.

    Args:
        run: see `RunContext`.
        context: the context of the training.
        todo: the tasks of all blocks to train.
        done: the blocks that an earlier session trained.
    """
    clock, display, executor, journal = run.clock, run.display, run.executor, run.inputs.journal
    missing = [task for task in todo if task.key not in done]
    if not missing:
        clock.lap("calibrate")
        return _ended(run, [], Assignment("none", (), ()), "no blocks to train")
    display.phase("predicting the training time of each layer")
    plan = make_plan(run.config.execution, run.given_costs, context, todo, missing, executor)
    clock.lap("calibrate")

    workers, details = executor.num_workers, "; ".join(filter(None, (plan.assignment.scheduler, plan.reason)))
    display.phase(f"training {len(missing)} blocks on {workers} workers ({details})")
    results = []
    for result in carry_out(plan.assignment, context, executor, display.update):
        if result.status == "trained":  # replaces the worker's entry, which lacks the worker's number and the times
            journal.commit_block(result)
        results.append(result)
    journal.write_json("costs.json", plan.measured_costs(results, str(journal.path)).as_json())
    return _ended(run, results, plan.assignment, plan.predicted_from)


def _ended(
    run: RunContext, results: Sequence[BlockResult], assignment: Assignment, predicted_from: str
) -> TrainedBlocks:
    """Return the phase, which ends now, with the energy of each block and of each worker."""
    run.clock.lap("distill")
    shares = run.account.shares(results, run.clock.laps["distill"])
    workers = shares.with_worker_energy(rows.worker_rows(results, run.executor.num_workers))
    return TrainedBlocks(shares.with_energy(results), assignment, predicted_from, workers)
