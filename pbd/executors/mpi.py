"""MPI: one worker per rank; rank 0 coordinates and trains.

Rank 0 sends each rank its queue, trains its own, and takes the results back in one gather. Nobody waits inside a
blocking call, which would burn a core that a neighbour trains on: everyone polls and sleeps.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pbd.errors import EnvironmentMismatchError, PbdError, UsageError
from pbd.executors.base import Emit, TrainGroup, run_queue
from pbd.records import Assignment, BlockResult, LayerTask, Progress, RunReport, TaskGroup

_COMMAND, _PROGRESS = 1, 2
_POLL_S = 0.05
_PROGRESS_INTERVAL_S = 0.5
_LAUNCHER_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class _Work:
    """From rank 0 to a worker: train these groups."""

    train_group: TrainGroup
    queue: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class _Stop:
    """From rank 0 to a worker: leave, with the report or with an exit code."""

    report: RunReport | None = None
    exit_code: int = 0


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
        for name in _LAUNCHER_SIZE_VARIABLES:
            announced = int(os.environ.get(name, self._comm.Get_size()))
            if announced != self._comm.Get_size():
                raise EnvironmentMismatchError(
                    f"mpirun and mpi4py must be of the same MPI. Received: {name}={announced}, but a communicator of "
                    f"{self._comm.Get_size()}. Use the mpirun that belongs to mpi4py's library."
                )

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        requests = [
            self._comm.isend(_Work(train_group, queue), dest=rank, tag=_COMMAND)
            for rank, queue in enumerate(assignment.queues)
            if rank > 0
        ]

        def emit_all(event: Progress) -> None:
            emit(event)
            self._pass_on_progress(emit)

        mine = self._train(train_group, assignment.queues[0], emit_all)
        for results in self._gather(mine, emit):
            yield from results
        for request in requests:
            request.wait()

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
                if command.report is None:
                    raise SystemExit(command.exit_code)
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
        if isinstance(error, SystemExit):
            return
        if isinstance(error, PbdError) and self.coordinates:
            self._tell_all(_Stop(exit_code=error.exit_code))
        else:
            abort(error)

    def _tell_all(self, message: _Stop) -> None:
        for rank in range(1, self.num_workers):
            self._comm.send(message, dest=rank, tag=_COMMAND)


def abort(error: BaseException) -> None:
    """End every rank at once: an exception in one rank alone would leave the others waiting for ever."""
    from mpi4py import MPI

    interrupted = isinstance(error, KeyboardInterrupt)
    if interrupted:
        print("pbd-run: stopped; the same command with --resume and its --run-dir goes on.", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(75 if interrupted else 70)
