"""MPI: one worker per rank; rank 0 coordinates and trains.

Rank 0 sends each rank its queue, trains its own, and takes the results back in one gather. Nobody waits inside a
blocking call, which would burn a core that a neighbour trains on: everyone polls and sleeps.
"""

import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pbd.errors import EnvironmentMismatchError, PbdError, StoppedError, UsageError
from pbd.executors import launcher
from pbd.executors.base import Emit, TrainGroup, run_queue
from pbd.records import Assignment, BlockResult, LayerTask, Progress, RunReport, TaskGroup

_COMMAND, _PROGRESS = 1, 2
_POLL_S = 0.05
_PROGRESS_INTERVAL_S = 0.5
_RANK_0_SPEAKS_FIRST_S = 0.5


@dataclass(frozen=True)
class _Work:
    """From rank 0 to a worker: train these groups."""

    train_group: TrainGroup
    queue: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class _Stop:
    """From rank 0 to a worker: leave, with the report or with the error that ended the run."""

    report: RunReport | None = None
    error: PbdError | None = None


class MpiExecutor:
    """Runs each worker's queue in one MPI rank."""

    name = "mpi"

    def __init__(self, num_workers: int | None = None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise EnvironmentMismatchError(
                f"the mpi executor needs mpi4py and an MPI library. Received: {error}. Install them with pip: "
                "mpi4py mpich."
            ) from error
        self._comm = MPI.COMM_WORLD
        self._training = False  # the workers are busy and cannot be told anything
        self._released = False  # everyone knows that the run is over
        self._check_launcher()
        self.num_workers = self._comm.Get_size()
        self.coordinates = self._comm.Get_rank() == 0
        if num_workers not in (None, self.num_workers):
            raise UsageError(
                f"under MPI the number of workers is the number of ranks. Received: --workers {num_workers}, "
                f"{self.num_workers} ranks. Use mpirun -n {num_workers}."
            )
        host = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_workers = host.Get_rank(), host.Get_size()
        host.Free()

    def _check_launcher(self) -> None:
        announced, found = launcher.size(), self._comm.Get_size()
        if announced not in (1, found):
            raise EnvironmentMismatchError(
                f"mpirun and mpi4py must be of the same MPI. Received: a launcher of {announced} ranks, a communicator "
                f"of {found}. Use the mpirun that belongs to mpi4py's library."
            )

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        self._training = True
        requests = [
            self._comm.isend(_Work(train_group, queue), dest=rank, tag=_COMMAND)
            for rank, queue in enumerate(assignment.queues)
            if rank > 0
        ]

        def emit_all(event: Progress) -> None:
            emit(event)
            self._pass_on_progress(emit)

        mine = self._train(train_group, assignment.queues[0], emit_all)
        gathered = self._gather(mine, emit)
        for request in requests:
            request.wait()
        self._training = False
        for results in gathered:
            yield from results

    def _train(self, train_group: TrainGroup, queue: Sequence[TaskGroup], emit: Emit) -> list[BlockResult]:
        groups = run_queue(train_group, queue, self._comm.Get_rank(), emit, time.monotonic())
        return [result for results in groups for result in results]

    def _gather(self, mine: list[BlockResult], emit: Emit) -> list[list[BlockResult]]:
        """Wait without burning a core until every rank is done, then gather once; only rank 0 receives."""
        everyone = self._comm.Ibarrier()
        while not everyone.Test():
            self._pass_on_progress(emit)
            time.sleep(_POLL_S)
        self._pass_on_progress(emit)
        return self._comm.gather(mine, root=0) or []

    def _pass_on_progress(self, emit: Emit) -> None:
        if not self.coordinates:
            return
        while self._comm.iprobe(tag=_PROGRESS):
            emit(self._comm.recv(tag=_PROGRESS))

    def serve(self) -> RunReport:
        while True:
            while not self._comm.iprobe(source=0, tag=_COMMAND):
                time.sleep(_POLL_S)
            command = self._comm.recv(source=0, tag=_COMMAND)
            if isinstance(command, _Stop):
                self._released = True
                if command.report is None:
                    raise command.error or StoppedError()
                return command.report
            self._gather(self._train(command.train_group, command.queue, self._progress_sender()), lambda _: None)

    def _progress_sender(self) -> Emit:
        """Return a function that sends progress to rank 0, seldom enough not to matter."""
        last: dict[str, Any] = {"at": 0.0, "request": None, "key": None}

        def send(event: Progress) -> None:
            key, now = (event.label, event.epoch), time.monotonic()
            if key == last["key"] and now - last["at"] < _PROGRESS_INTERVAL_S:
                return
            if last["request"] is None or last["request"].Test():
                last.update(at=now, key=key, request=self._comm.isend(event, dest=0, tag=_PROGRESS))

        return send

    def finish(self, report: RunReport) -> None:
        self._tell_all(_Stop(report=report))

    def stop(self, error: BaseException) -> None:
        if self._released:
            return
        if isinstance(error, PbdError) and self.coordinates and not self._training:
            self._tell_all(_Stop(error=error))
        else:
            abort(error)

    def _tell_all(self, message: _Stop) -> None:
        for rank in range(1, self.num_workers):
            self._comm.send(message, dest=rank, tag=_COMMAND)
        self._released = True


def abort(error: BaseException) -> None:
    """End every rank at once: an exception in one rank alone would leave the others waiting for ever."""
    from mpi4py import MPI

    if isinstance(error, PbdError | KeyboardInterrupt):
        told = error if isinstance(error, PbdError) else StoppedError()
        if MPI.COMM_WORLD.Get_rank() != 0:
            time.sleep(_RANK_0_SPEAKS_FIRST_S)
        print(f"pbd-run: {told}", file=sys.__stderr__, flush=True)
        MPI.COMM_WORLD.Abort(told.exit_code)
    traceback.print_exception(error, file=sys.__stderr__)
    sys.__stderr__.flush()
    MPI.COMM_WORLD.Abort(PbdError.exit_code)
