"""What every executor offers, and the loop over a queue that they share."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pbd.records import Assignment, BlockResult, LayerTask, Progress, RunReport, TaskGroup

Emit = Callable[[Progress], None]
TrainGroup = Callable[[TaskGroup, Emit], list[BlockResult]]
"""Trains a group and returns one result per task; it must be picklable."""


class Executor(Protocol):
    """Runs a function on the groups of an assignment, one queue per worker."""

    name: str
    num_workers: int
    local_rank: int
    """This process's number among the workers of the same host."""
    local_workers: int
    """How many workers share this host."""
    coordinates: bool
    """Whether this process runs the pipeline; the others `serve` it."""

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        """Yield the results of every task of the assignment; progress of all workers goes to `emit`."""
        ...

    def serve(self) -> RunReport:
        """In a process that does not coordinate: work until told to stop; return the coordinator's report."""
        ...

    def finish(self, report: RunReport) -> None:
        """In the coordinator: send the report to all other processes and let them go."""
        ...

    def stop(self, error: BaseException) -> None:
        """End every other process, whichever met the error; a `PbdError` of the coordinator ends them in good order."""
        ...


def run_queue(
    train_group: TrainGroup, queue: Sequence[TaskGroup], worker: int, emit: Emit, phase_began: float
) -> Iterator[list[BlockResult]]:
    """Train one worker's groups in order, and stamp the results with the worker and its times.

    Args:
        phase_began: `time.monotonic()` when the block phase began.
    """
    for group in queue:
        started = time.monotonic()
        results = train_group(group, lambda event: emit(dataclasses.replace(event, worker=worker)))
        seconds = time.monotonic() - started
        yield [
            dataclasses.replace(result, worker=worker, started_s=started - phase_began, seconds=seconds)
            for result in results
        ]
