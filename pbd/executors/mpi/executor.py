"""MPI: one worker per rank; rank 0 coordinates, too.

Rank 0 sends each rank its queue, trains its own, and takes the results back in one gather. Groups of a common pool are
drawn by an atomic counter, so that no rank is spent on handing them out. Nobody waits long in a blocking call, which
would burn a core that a neighbour trains on: everyone polls and sleeps. All-reduce is the exception: it is so short and
so frequent that members wait in it.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pbd import energy
from pbd.collective import Collective, CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import PbdError, StoppedError, UsageError
from pbd.executors.base import CheckpointToken, Emit, Throttle, TrainGroup, no_checkpoint, run_queue
from pbd.executors.isolation import retry, runner
from pbd.executors.mpi import world
from pbd.executors.mpi.collective import MpiCollective
from pbd.records import Assignment, BlockResult, BlockTask, Progress, RunReport, TaskGroup
from pbd.system import devices, watchdog

_COMMAND, _PROGRESS = 1, 2
_POLL_S = 0.05
_COUNTER_POLL_S = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class _Work:
    """From rank 0 to a worker: train these groups, and then what the counter gives you of the pool."""

    train_group: runner.Pickled[list[BlockResult]]
    queue: tuple[TaskGroup, ...]
    pool: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class _RunCollective:
    """From rank 0 to a worker: call this at the same time as all others."""

    function: runner.Pickled[Any]
    max_workers: int
    checkpoint: CheckpointToken


@dataclass(frozen=True)
class _Read:
    """From rank 0 to a worker: say what was read of your host."""


@dataclass(frozen=True)
class _Stop:
    """From rank 0 to a worker: leave, with the report or with the error that ended the run."""

    report: RunReport | None = None
    error: PbdError | None = None


class MpiExecutor:
    """Runs each worker's queue in one MPI rank."""

    name = "mpi"
    elastic = False

    def __init__(self, config: ExecutionConfig) -> None:
        self._comm, local_rank, local_ranks = world.join()
        self._busy = False  # the workers, which then cannot be told anything
        self._released = False  # everyone knows that the run is over
        self._telling: Any = None  # progress on its way to rank 0
        self.num_workers = self.collective_size = self._comm.Get_size()
        self.coordinates = self._comm.Get_rank() == 0
        if config.workers not in (None, self.num_workers):
            raise UsageError(
                f"under MPI the number of workers is the number of ranks. Received: --workers {config.workers}, "
                f"{self.num_workers} ranks. Use mpirun -n {config.workers}."
            )
        self.share = devices.Share(local_rank, local_ranks, config.threads_per_worker, config.verbose)
        self._runner = runner.open_runner(config, self.share)
        if self.num_workers > 1 and world.allows_threads():
            beats = world.HeartbeatMonitor(self._comm, config.stall_limit)
            watchdog.also_check(beats.exchange, world.abort)

    def run(
        self, train_group: TrainGroup, tasks: Sequence[BlockTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        packed = runner.Pickled.of(train_group)
        with self._keeping_them_busy():
            requests = [
                self._comm.isend(_Work(packed, queue, assignment.pool), dest=rank, tag=_COMMAND)
                for rank, queue in enumerate(assignment.queues)
                if rank > 0
            ]
            gathered = self._work(_Work(packed, assignment.queues[0], assignment.pool), emit)
            for request in requests:
                request.wait()
        for results in gathered:
            yield from results

    def call(self, function: Callable[[], T]) -> T:
        return retry.call_in(self._runner, function)  # rank 0 is a worker like the others

    def run_collective(
        self,
        function: Callable[[Collective, Emit], T],
        emit: Emit,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        command = _RunCollective(runner.Pickled.of(function), max_workers, checkpoint)
        with self._keeping_them_busy():
            self._tell_all(command)
            return self._join(command, emit)

    @contextlib.contextmanager
    def _keeping_them_busy(self) -> Iterator[None]:
        """Note that workers are at something that this process asked for; after an error they still are."""
        self._busy = True
        yield
        self._busy = False

    def _join(self, command: _RunCollective, emit: Emit) -> Any:
        """Do this rank's part of what all do together; again, if any of them lost the process that did its part."""
        with self._collective_of(command.max_workers) as collective:
            if collective is None:
                return None

            def attempt() -> Any:
                collective.start()
                result = self._runner.run(command.function, emit, collective)
                collective.finish()
                return result

            return retry.retry_lost(attempt, CollectiveLostError, checkpoint=command.checkpoint)

    @contextlib.contextmanager
    def _collective_of(self, max_workers: int) -> "Iterator[MpiCollective | None]":
        """Make a collective of the first ranks; all must come, and those that are not of it get `None`."""
        from mpi4py import MPI

        rank = self._comm.Get_rank()
        comm = self._comm.Split(0 if rank < max_workers else MPI.UNDEFINED, rank)
        if comm == MPI.COMM_NULL:
            yield None
        else:
            yield MpiCollective(comm)
            comm.Free()

    def _work(self, work: _Work, emit: Emit) -> list[list[BlockResult]]:
        """Train this rank's groups; return what every rank has trained, in rank 0 alone."""

        def emit_all(event: Progress) -> None:
            emit(event)
            self._pass_on_progress(emit)

        counter = SharedCounter(self._comm) if work.pool else None
        drawn = counter.draw(work.pool) if counter else ()
        mine = self._train(work.train_group, itertools.chain(work.queue, drawn), emit_all)
        gathered = self._gather(mine, emit)
        if counter:
            counter.close()
        return gathered

    def _train(self, train_group: TrainGroup, groups: Iterable[TaskGroup], emit: Emit) -> list[BlockResult]:
        train_group = retry.training_in(self._runner, train_group)
        trained = run_queue(train_group, groups, self._comm.Get_rank(), emit, time.monotonic())
        return [result for results in trained for result in results]

    def _gather(self, mine: T, emit: Emit) -> list[T]:
        """Wait without burning a core until every rank is done, then gather once; only rank 0 receives."""
        while self._telling is not None and not self._telling.Test():
            watchdog.touch()
            time.sleep(_POLL_S)
        everyone = self._comm.Ibarrier()
        while not everyone.Test():
            watchdog.touch()
            self._pass_on_progress(emit)
            time.sleep(_POLL_S)
        self._pass_on_progress(emit)
        return self._comm.gather(mine, root=0) or []

    def _pass_on_progress(self, emit: Emit) -> None:
        if not self.coordinates:
            return
        while self._comm.iprobe(tag=_PROGRESS):
            emit(self._comm.recv(tag=_PROGRESS))

    def readings(self) -> dict[int, energy.Reading]:
        with self._keeping_them_busy():
            self._tell_all(_Read())
            return dict(enumerate(self._gather(energy.unread(), lambda event: None)))

    def serve(self) -> RunReport:
        first = self.share.local_rank == 0  # rank 0 is the first of its own host
        with energy.measure() if first else contextlib.nullcontext(energy.NoMeter()) as meter:
            return self._serve(meter)

    def _serve(self, meter: energy.HostMeter | energy.NoMeter) -> RunReport:
        while True:
            while not self._comm.iprobe(source=0, tag=_COMMAND):
                watchdog.touch()
                time.sleep(_POLL_S)
            command = self._comm.recv(source=0, tag=_COMMAND)
            if isinstance(command, _Stop):
                self._released = True
                self._runner.close()
                if command.report is None:
                    raise command.error or StoppedError()
                return command.report
            if isinstance(command, _Read):
                self._gather(meter.read(), lambda event: None)
            elif isinstance(command, _RunCollective):
                self._join(command, lambda event: None)
            else:
                self._work(command, Throttle(self._tell_progress))

    def _tell_progress(self, event: Progress) -> None:
        """Send progress to rank 0, unless it has not taken what was sent before."""
        if self._telling is None or self._telling.Test():
            self._telling = self._comm.isend(event, dest=0, tag=_PROGRESS)

    def finish(self, report: RunReport) -> None:
        self._tell_all(_Stop(report=report))
        self._released = True
        self._runner.close()

    def stop(self, error: BaseException) -> None:
        if self._released:
            return
        if isinstance(error, PbdError) and self.coordinates and not self._busy:
            self._tell_all(_Stop(error=error))
            self._released = True
            self._runner.close()
        else:
            self._runner.close()
            world.abort(error)

    def _tell_all(self, message: _RunCollective | _Read | _Stop) -> None:
        for rank in range(1, self.num_workers):
            self._comm.send(message, dest=rank, tag=_COMMAND)


class SharedCounter:
    """Counts up from 0 for all ranks together: each number is given once (one-sided `Fetch_and_op` on rank 0).

    A rank that reads the counter waits until rank 0 enters MPI, so a thread there does so all the time. Making and
    closing it is collective.
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._sum, self._one = MPI.SUM, np.ones(1, np.int64)
        itemsize = self._one.itemsize
        self._window = MPI.Win.Allocate(itemsize if comm.Get_rank() == 0 else 0, itemsize, comm=comm)
        self._closing = threading.Event()
        self._answering = threading.Thread(target=self._answer, args=(comm,), daemon=True)
        if comm.Get_rank() == 0:
            self._window.Lock(0)  # what others read has to be written inside of an epoch
            np.frombuffer(self._window.tomemory(), np.int64)[:] = 0
            self._window.Unlock(0)
            if world.allows_threads():  # else workers wait until rank 0 passes on progress
                self._answering.start()
        comm.Barrier()

    def _answer(self, comm: Any) -> None:
        while not self._closing.wait(_COUNTER_POLL_S):
            comm.iprobe(tag=_COMMAND)  # any call makes progress; nobody sends commands to rank 0

    def next(self) -> int:
        """Return the next number."""
        got = np.zeros(1, np.int64)
        self._window.Lock(0)
        self._window.Fetch_and_op(self._one, got, 0, 0, self._sum)
        self._window.Unlock(0)
        return int(got[0])

    def draw(self, pool: Sequence[TaskGroup]) -> Iterator[TaskGroup]:
        """Yield this rank's share of the pool, one group whenever it asks."""
        while (number := self.next()) < len(pool):
            yield pool[number]

    def close(self) -> None:
        """Free the window; every rank must come."""
        self._closing.set()
        if self._answering.is_alive():
            self._answering.join()
        self._window.Free()
