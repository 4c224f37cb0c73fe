"""All work in this process, as several workers would share it: the behaviour that every executor is held against."""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pbd.executors.base import Emit, TrainGroup, run_queue
from pbd.records import Assignment, BlockResult, LayerTask, RunReport
from pbd.scheduling.dispatch import Dispatcher
from pbd.teamwork import ALONE, Team

T = TypeVar("T")


class SerialExecutor:
    """Runs every group here; of several workers, the one that has been busy for the least time is next."""

    name = "serial"
    team_size = 1
    elastic = False
    local_rank = 0
    local_workers = 1
    coordinates = True

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        began, dispatcher = time.monotonic(), Dispatcher(assignment)
        free = [(0.0, worker) for worker in range(self.num_workers)]
        while free:
            busy_s, worker = heapq.heappop(free)
            group = dispatcher.take(worker)
            if group is None:
                continue
            (results,) = run_queue(train_group, [group], worker, emit, began)
            heapq.heappush(free, (busy_s + results[0].seconds, worker))
            yield from results

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def together(self, function: Callable[[Team, Emit], T], emit: Emit, most: int) -> T:
        return function(ALONE, emit)

    def serve(self) -> RunReport:
        raise RuntimeError("the serial executor has no other process to serve")

    def finish(self, report: RunReport) -> None:
        """There is nobody else to tell."""

    def stop(self, error: BaseException) -> None:
        """There is nobody else to stop."""
