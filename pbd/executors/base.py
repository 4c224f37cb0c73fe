"""The executor protocol, and the loop over a worker's queue that all executors share."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from pbd.collective import Collective
from pbd.records import Assignment, BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.system.devices import Share

if TYPE_CHECKING:
    from pbd.energy import Reading

T = TypeVar("T")
TrainGroup = Callable[[TaskGroup, ProgressCallback], list[BlockResult]]
"""Trains a group and returns one result per task; must be picklable by cloudpickle."""
CheckpointToken = Callable[[], object]
"""Returns a value that changes whenever a checkpoint is written; must be picklable by cloudpickle."""
PROGRESS_INTERVAL_S = 0.5


def no_checkpoint() -> None:
    """Return the token of work that writes no checkpoint: a retry starts from scratch."""


class Executor(Protocol):
    """Runs functions on the workers of one run."""

    name: str
    share: Share
    """The share of the host's devices that this process may use."""
    elastic: bool
    """Whether workers may join and leave during the run."""
    coordinates: bool
    """Whether this process runs the pipeline; other processes call `serve`."""

    @property
    def num_workers(self) -> int:
        """The number of workers of the run."""
        ...

    @property
    def collective_size(self) -> int:
        """The largest number of workers that `run_collective` can use."""
        ...

    def run(self, train_group: TrainGroup, assignment: Assignment, progress: ProgressCallback) -> Iterator[BlockResult]:
        """Train all groups of an assignment and yield the results as they arrive.

        Args:
            train_group: called once per group, in a worker's training process.
            assignment: the queue of each worker, and the pool that all workers draw from.
            progress: receives the progress of all workers.
        """
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Call a picklable function in one worker's training process and return its result.

        Raises:
            NoWorkersError: the process was lost at every attempt.
        """
        ...

    def run_each(
        self, functions: Sequence[Callable[[Collective, ProgressCallback], T]], progress: ProgressCallback
    ) -> list[T]:
        """Call each picklable function in one worker's training process; return the results in their order.

        A worker that is free takes the next function. If its training process is lost, the function is called again.

        Args:
            functions: each is called with a collective of one member and a progress callback.
            progress: receives the progress of all workers.

        Raises:
            PbdError: raised by a function; no worker takes another one.
            Exception: the function's own exception.
            NoWorkersError: the process was lost at every attempt.
        """
        ...

    def run_collective(
        self,
        function: Callable[[Collective, ProgressCallback], T],
        progress: ProgressCallback,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        """Call a picklable function in several workers at once, as one collective; return the first member's result.

        In the serial executor the collective has a single member.

        Args:
            function: called with the worker's collective and a progress callback.
            progress: receives the progress of the first member.
            max_workers: the largest number of members; other workers wait.
            checkpoint: returns a token that changes whenever a checkpoint is written; attempts that made progress do
                not count as failures.

        Raises:
            Exception: the function's own exception, from any member.
            NoWorkersError: a member was lost at every attempt.
        """
        ...

    def readings(self) -> "dict[int, Reading]":
        """Return the energy readings of this run by worker; to be called while no worker trains.

        One worker per host has a meter; the coordinator's host is measured by the coordinator. The reading of any
        other worker, and of a lost one, only names its host. A worker that does not answer is left out.
        """
        ...

    def serve(self) -> Any:
        """Execute the coordinator's commands until the run ends, and return its result; for other processes only."""
        ...

    def finish(self, result: object) -> None:
        """Send the result, which is not None, to all other processes and end the run; for the coordinator only."""
        ...

    def stop(self, error: BaseException) -> None:
        """End the run in all processes after an error; if it is the coordinator's `PbdError`, the others raise it."""
        ...

    def abort(self, error: BaseException) -> NoReturn:
        """Print the error and end all processes of the run at once; may be called from any thread."""
        ...


def of_worker(worker: int, progress: ProgressCallback) -> ProgressCallback:
    """Return a callback that adds the number of a worker to its progress."""
    return lambda event: progress(dataclasses.replace(event, worker=worker))


class Throttle:
    """Forwards a new label or epoch at once, and other progress at most every `PROGRESS_INTERVAL_S` seconds."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress, self._last_s = progress, -math.inf
        self._last_stage: tuple[str, int] | None = None

    def __call__(self, event: Progress) -> None:
        stage, now_s = (event.label, event.epoch), time.monotonic()
        if stage != self._last_stage or now_s - self._last_s >= PROGRESS_INTERVAL_S:
            self._last_stage, self._last_s = stage, now_s
            self._progress(event)


def run_queue(
    train_group: TrainGroup, groups: Iterable[TaskGroup], worker: int, progress: ProgressCallback, phase_began: float
) -> Iterator[list[BlockResult]]:
    """Train one worker's groups in order, and add the worker's number and the times to the results.

    Args:
        train_group: trains one group.
        groups: consumed lazily: the next group is requested after the previous one is trained.
        worker: the worker's number.
        progress: receives the progress, with the worker's number.
        phase_began: `time.monotonic()` at the start of the block phase.
    """
    for group in groups:
        started = time.monotonic()
        results = train_group(group, of_worker(worker, progress))
        seconds = time.monotonic() - started
        yield [
            dataclasses.replace(
                result,
                worker=worker,
                started_s=started - phase_began,
                seconds=result.seconds if result.from_journal else seconds,
                predicted_s=group.predicted_s,
            )
            for result in results
        ]
