"""All workers simulated one after another in one training process: the reference behaviour of every executor."""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from pbd import energy
from pbd.collective import Collective
from pbd.config import ExecutionConfig
from pbd.executors.base import CheckpointToken, TrainGroup, no_checkpoint, run_queue
from pbd.executors.isolation import retry, runner
from pbd.executors.isolation.base import TaskRunner
from pbd.records import Assignment, BlockResult, ProgressCallback
from pbd.scheduling.dispatch import Dispatcher
from pbd.system import devices, watchdog

T = TypeVar("T")


class SerialExecutor:
    """Trains every group in one runner, and attributes each to the simulated worker that is free first.

    Args:
        config: the number of workers, their share of the host, and whether training is isolated.
        task_runner: executes all work; by default the configured one.
    """

    name = "serial"
    collective_size = 1
    elastic = False
    coordinates = True

    def __init__(self, config: ExecutionConfig, task_runner: TaskRunner | None = None) -> None:
        self.num_workers = config.workers or 1
        self.share = devices.Share(threads=config.threads_per_worker, verbose=config.verbose)
        self._runner = task_runner or runner.open_runner(config, self.share)

    def run(self, train_group: TrainGroup, assignment: Assignment, progress: ProgressCallback) -> Iterator[BlockResult]:
        began, dispatcher = time.monotonic(), Dispatcher.of(assignment)
        train_group = retry.retrying(self._runner, train_group)
        free = [(0.0, worker) for worker in range(self.num_workers)]
        while free:
            busy_s, worker = heapq.heappop(free)
            group = dispatcher.take(worker)
            if group is None:
                continue
            (results,) = run_queue(train_group, [group], worker, progress, began)
            heapq.heappush(free, (busy_s + results[0].seconds, worker))
            yield from results

    def call(self, function: Callable[[], T]) -> T:
        return retry.call_in(self._runner, function)

    def run_each(
        self, functions: Sequence[Callable[[Collective, ProgressCallback], T]], progress: ProgressCallback
    ) -> list[T]:
        return [retry.run_in(self._runner, function, progress) for function in functions]

    def run_collective(
        self,
        function: Callable[[Collective, ProgressCallback], T],
        progress: ProgressCallback,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        return retry.retry_lost(lambda: self._runner.run(function, progress), checkpoint=checkpoint)

    def readings(self) -> dict[int, energy.Reading]:
        return {0: energy.unread()} if self.num_workers == 1 else {}  # simulated workers share one worker's energy

    def serve(self) -> Any:
        raise RuntimeError("the serial executor has no other process to serve")

    def finish(self, result: object) -> None:
        self._runner.close()

    def stop(self, error: BaseException) -> None:
        self._runner.close()

    def abort(self, error: BaseException) -> NoReturn:
        watchdog.exit_process(error)
