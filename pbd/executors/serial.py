"""All work in one place, as several workers would share it: the behaviour that every executor is held against."""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pbd import energy
from pbd.collective import Collective
from pbd.config import ExecutionConfig
from pbd.executors.base import CheckpointToken, Emit, TrainGroup, no_checkpoint, run_queue
from pbd.executors.isolation import retry, runner
from pbd.records import Assignment, BlockResult, BlockTask, RunReport
from pbd.scheduling.dispatch import Dispatcher
from pbd.system import devices

T = TypeVar("T")


class SerialExecutor:
    """Runs every group in one runner; of several workers, the one that has been busy for the least time is next."""

    name = "serial"
    collective_size = 1
    elastic = False
    coordinates = True

    def __init__(self, config: ExecutionConfig) -> None:
        self.num_workers = config.workers or 1
        self.share = devices.Share(threads=config.threads_per_worker, verbose=config.verbose)
        self._runner = runner.open_runner(config, self.share)

    def run(
        self, train_group: TrainGroup, tasks: Sequence[BlockTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        began, dispatcher = time.monotonic(), Dispatcher(assignment)
        train_group = retry.training_in(self._runner, train_group)
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
        return retry.call_in(self._runner, function)

    def run_collective(
        self,
        function: Callable[[Collective, Emit], T],
        emit: Emit,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        return retry.retry_lost(lambda: self._runner.run(function, emit), checkpoint=checkpoint)

    def readings(self) -> dict[int, energy.Reading]:
        return {0: energy.unread()} if self.num_workers == 1 else {}  # imagined workers spend nothing of their own

    def serve(self) -> RunReport:
        raise RuntimeError("the serial executor has no other process to serve")

    def finish(self, report: RunReport) -> None:
        self._runner.close()

    def stop(self, error: BaseException) -> None:
        self._runner.close()
