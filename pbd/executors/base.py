"""What every executor offers, and the loop over a queue that they share."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from pbd.collective import Collective
from pbd.records import Assignment, BlockResult, BlockTask, Progress, RunReport, TaskGroup
from pbd.system.devices import Share

if TYPE_CHECKING:
    from pbd.energy import Reading

T = TypeVar("T")
Emit = Callable[[Progress], None]
TrainGroup = Callable[[TaskGroup, Emit], list[BlockResult]]
"""Trains a group and returns one result per task; it must be picklable."""
CheckpointToken = Callable[[], object]
"""Says, in every process that has the run directory, what was checkpoint there; it must be picklable."""
PROGRESS_INTERVAL_S = 0.5


def no_checkpoint() -> None:
    """Say that what is lost was lost as a whole."""


class Executor(Protocol):
    """Runs a function on the groups of an assignment, one queue per worker."""

    name: str
    num_workers: int
    share: Share
    """What this process may take of its host."""
    collective_size: int
    """How many of them can work `together`."""
    elastic: bool
    """Whether workers may come and go."""
    coordinates: bool
    """Whether this process runs the pipeline; the others `serve` it."""

    def run(
        self, train_group: TrainGroup, tasks: Sequence[BlockTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        """Yield the results of every task of the assignment; progress of all workers goes to `emit`."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Return what a picklable function gives where a worker trains, on its device and with its threads."""
        ...

    def run_collective(
        self,
        function: Callable[[Collective, Emit], T],
        emit: Emit,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        """Have all workers call a picklable function at once, as a collective; return what the first of them gives.

        Where the workers are only imagined, one is the collective.

        Args:
            function: called with the worker's collective and, for progress, a listener.
            emit: told of the first worker's progress.
            max_workers: how many workers can be of use; the others wait.
            checkpoint: returns a token that changes whenever a checkpoint is written; attempts that made progress do
                not count as failures.

        Raises:
            Exception: the function's own, of whichever worker.
            NoWorkersError: one worker after another was lost.
        """
        ...

    def readings(self) -> "dict[int, Reading]":
        """Return, by worker, what was read of its host in this run; to be called while none of them trains.

        On each host but the coordinator's, one worker has a meter; readings of others only tell the host, and so does
        that of a worker that was lost. No error is raised for a worker that does not answer: it is left out.
        """
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


class Throttle:
    """Passes progress on, seldom enough not to matter: a new label or epoch at once, steps twice a second."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._last_s = emit, -math.inf
        self._before: tuple[str, int] | None = None

    def __call__(self, event: Progress) -> None:
        what, now_s = (event.label, event.epoch), time.monotonic()
        if what != self._before or now_s - self._last_s >= PROGRESS_INTERVAL_S:
            self._before, self._last_s = what, now_s
            self._emit(event)


def run_queue(
    train_group: TrainGroup, groups: Iterable[TaskGroup], worker: int, emit: Emit, phase_began: float
) -> Iterator[list[BlockResult]]:
    """Train one worker's groups in order, and stamp the results with the worker and its times.

    Args:
        groups: the next one is asked for when the one before it is done.
        phase_began: `time.monotonic()` when the block phase began.
    """
    for group in groups:
        started = time.monotonic()
        results = train_group(group, lambda event: emit(dataclasses.replace(event, worker=worker)))
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
