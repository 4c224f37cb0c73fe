"""All work in this process, one worker's queue after another: the behaviour that every executor is held against."""

import time
from collections.abc import Iterator, Sequence

from pbd.executors.base import Emit, TrainGroup, run_queue
from pbd.records import Assignment, BlockResult, LayerTask, RunReport


class SerialExecutor:
    """Runs every queue here; with several workers it does one worker's queue after the other."""

    name = "serial"
    local_rank = 0
    local_workers = 1
    coordinates = True

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        began = time.monotonic()
        for worker, queue in enumerate(assignment.queues):
            for results in run_queue(train_group, queue, worker, emit, began):
                yield from results

    def serve(self) -> RunReport:
        raise RuntimeError("the serial executor has no other process to serve")

    def finish(self, report: RunReport) -> None:
        """There is nobody else to tell."""

    def stop(self, error: BaseException) -> None:
        """There is nobody else to stop."""
