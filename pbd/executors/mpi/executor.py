"""MPI executor: one worker per rank; rank 0 coordinates and trains.

Rank 0 sends each rank its queue, trains its own, and receives all results in one gather. Groups of a common pool are
drawn from an atomic counter, so that no rank is needed to distribute them. Ranks that wait poll and sleep: a blocking
MPI call would occupy a core that another rank trains on. Only the exchanges after a loss block.
"""

import collections
import contextlib
import itertools
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import cloudpickle

from pbd import energy
from pbd.collective import Collective, CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import PbdError, StoppedError, UsageError
from pbd.executors.base import CheckpointToken, Throttle, TrainGroup, no_checkpoint, of_worker, run_queue
from pbd.executors.isolation import retry, runner
from pbd.executors.isolation.messages import picklable
from pbd.executors.mpi import world
from pbd.executors.mpi.collective import MpiCollective
from pbd.executors.mpi.commands import Outcome, ReadEnergy, RunCollective, RunEach, Stop, Train
from pbd.executors.mpi.counter import SharedCounter
from pbd.executors.mpi.heartbeat import HeartbeatMonitor
from pbd.records import Assignment, BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.system import backend, devices, watchdog

_COMMAND, _PROGRESS = 1, 2  # tags of messages
_POLL_S = 0.05

T = TypeVar("T")
W = TypeVar("W")


class MpiExecutor:
    """Runs one worker per MPI rank.

    Raises:
        EnvironmentMismatchError: there is no MPI library, or the launcher belongs to another one.
        UsageError: the number of workers contradicts the number of ranks.
    """

    name = "mpi"
    elastic = False

    def __init__(self, config: ExecutionConfig) -> None:
        self._comm, local_rank, local_ranks = world.join()
        self._workers_busy = False  # busy workers receive no commands
        self._ended = False  # whether all ranks know that the run is over
        self._sending_progress: Any = None
        self._heartbeat: watchdog.Watchdog | None = None
        self.num_workers = self.collective_size = self._comm.Get_size()
        self.coordinates = self._comm.Get_rank() == 0
        if config.workers not in (None, self.num_workers):
            raise UsageError(
                f"under MPI the number of workers is the number of ranks. Received: --workers {config.workers}, "
                f"{self.num_workers} ranks. Use mpirun -n {config.workers}."
            )
        share = devices.Share(local_rank, local_ranks, config.threads_per_worker, config.verbose)
        self.share = replace(share, leads=self.coordinates and config.isolate)
        try:
            backend.use(self._comm.bcast(backend.name()))  # launchers do not pass the environment to every host
            self._runner = runner.open_runner(config, share)
            if self.num_workers > 1 and world.allows_threads():
                monitor = HeartbeatMonitor(config.stall_limit)
                self._heartbeat = watchdog.Watchdog(monitor.exchange, self.abort)
        except BaseException as error:
            self.abort(error)  # the other ranks may have started, and would wait for this one

    def run(self, train_group: TrainGroup, assignment: Assignment, progress: ProgressCallback) -> Iterator[BlockResult]:
        pickled = runner.Pickled.of(train_group)
        with self._occupied_workers():
            requests = [
                self._comm.isend(cloudpickle.dumps(Train(pickled, queue, assignment.pool)), dest=rank, tag=_COMMAND)
                for rank, queue in enumerate(assignment.queues)
                if rank > 0
            ]
            gathered = self._train(Train(pickled, assignment.queues[0], assignment.pool), progress)
            for request in requests:
                request.wait()
        for results in gathered:
            yield from results

    def call(self, function: Callable[[], T]) -> T:
        return retry.call_in(self._runner, function)  # rank 0 is a worker, too

    def run_each(
        self, functions: Sequence[Callable[[Collective, ProgressCallback], T]], progress: ProgressCallback
    ) -> list[T]:
        command = RunEach(tuple(map(runner.Pickled.of, functions)))
        with self._occupied_workers():
            self._send_all(command)
            outcomes = self._run_drawn(command, progress)
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if errors:
            raise errors[0]
        results = {number: result for outcome in outcomes for number, result in outcome.results.items()}
        return [results[number] for number in range(len(functions))]

    def run_collective(
        self,
        function: Callable[[Collective, ProgressCallback], T],
        progress: ProgressCallback,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        command = RunCollective(runner.Pickled.of(function), max_workers, checkpoint)
        with self._occupied_workers():
            self._send_all(command)
            return self._run_member(command, progress)

    @contextlib.contextmanager
    def _occupied_workers(self) -> Iterator[None]:
        """Mark the workers as busy in the block; after an exception they stay busy."""
        self._workers_busy = True
        yield
        self._workers_busy = False

    def _run_member(self, command: RunCollective, progress: ProgressCallback) -> Any:
        """Call the function as a member of the collective; all members retry if one loses its training process."""
        with self._collective(command.max_workers) as collective:
            if collective is None:
                return None

            def attempt() -> Any:
                collective.start()
                result = self._runner.run(command.function, progress, collective)
                collective.finish()
                return result

            def checkpoint() -> object:
                return collective.first_value(command.checkpoint)

            return retry.retry_lost(attempt, CollectiveLostError, checkpoint=checkpoint)

    @contextlib.contextmanager
    def _collective(self, max_workers: int) -> "Iterator[MpiCollective | None]":
        """Create a collective of the first ranks; all ranks enter this, and ranks that are no members get `None`."""
        from mpi4py import MPI

        rank = self._comm.Get_rank()
        comm = self._comm.Split(0 if rank < max_workers else MPI.UNDEFINED, rank)
        if comm == MPI.COMM_NULL:
            yield None
        else:
            yield MpiCollective(comm)
            comm.Free()

    def _train(self, command: Train, progress: ProgressCallback) -> list[list[BlockResult]]:
        """Train this rank's groups; return the results of every rank, in rank 0 only."""

        def work(drawn: Iterator[TaskGroup], report: ProgressCallback) -> list[BlockResult]:
            return self._train_groups(command.train_group, itertools.chain(command.queue, drawn), report)

        return self._distribute(command.pool, work, progress)

    def _run_drawn(self, command: RunEach, progress: ProgressCallback) -> list[Outcome]:
        """Call the functions that this rank draws; return the outcomes of every rank, in rank 0 only."""
        return self._distribute(list(enumerate(command.functions)), self._call_functions, progress)

    def _call_functions(self, drawn: Iterator[tuple[int, runner.Pickled[Any]]], progress: ProgressCallback) -> Outcome:
        """Call functions in order; a `PbdError` is returned, so that rank 0 raises it and stops the other ranks."""
        results, report = dict[int, Any](), of_worker(self._comm.Get_rank(), progress)
        for number, function in drawn:
            try:
                results[number] = retry.run_in(self._runner, function, report)
            except PbdError as error:
                collections.deque(drawn, maxlen=0)  # no rank draws another function
                return Outcome(results, picklable(error))
        return Outcome(results)

    def _distribute(
        self, pool: Sequence[W], work: Callable[[Iterator[W], ProgressCallback], T], progress: ProgressCallback
    ) -> list[T]:
        """Call `work` in this rank with what it draws from the pool; return what it returns in all, in rank 0 only.

        All ranks call this at the same time.
        """

        def report(event: Progress) -> None:
            progress(event)
            self._receive_progress(progress)

        counter = SharedCounter(self._comm) if pool else None
        value = work(counter.draw(pool) if counter else iter(()), report)
        gathered = self._gather(value, progress)
        if counter:
            counter.close()
        return gathered

    def _train_groups(
        self, train_group: TrainGroup, groups: Iterable[TaskGroup], progress: ProgressCallback
    ) -> list[BlockResult]:
        train_group = retry.retrying(self._runner, train_group)
        batches = run_queue(train_group, groups, self._comm.Get_rank(), progress, time.monotonic())
        return [result for results in batches for result in results]

    def _gather(self, value: T, progress: ProgressCallback) -> list[T]:
        """Wait for all ranks and gather their values; returns an empty list in all ranks but 0."""
        while self._sending_progress is not None and not self._sending_progress.Test():
            watchdog.touch()
            time.sleep(_POLL_S)
        self._wait_for_all(progress)
        gathered = self._comm.gather(cloudpickle.dumps(value), root=0) or []
        return [pickle.loads(pickled) for pickled in gathered]

    def _wait_for_all(self, progress: ProgressCallback) -> None:
        """Wait for all ranks without occupying a core, and receive progress meanwhile."""
        barrier = self._comm.Ibarrier()
        while not barrier.Test():
            watchdog.touch()
            self._receive_progress(progress)
            time.sleep(_POLL_S)
        self._receive_progress(progress)

    def _receive_progress(self, progress: ProgressCallback) -> None:
        if not self.coordinates:
            return
        while self._comm.iprobe(tag=_PROGRESS):
            progress(self._comm.recv(tag=_PROGRESS))

    def readings(self) -> dict[int, energy.Reading]:
        with self._occupied_workers():
            self._send_all(ReadEnergy())
            return dict(enumerate(self._gather(energy.unread(), _ignore)))

    def serve(self) -> Any:
        measures = self.share.local_rank == 0  # on rank 0's host that is rank 0, which coordinates
        with energy.measure() if measures else contextlib.nullcontext(energy.NoMeter()) as meter:
            return self._serve(meter)

    def _serve(self, meter: energy.HostMeter | energy.NoMeter) -> Any:
        while True:
            while not self._comm.iprobe(source=0, tag=_COMMAND):
                watchdog.touch()
                time.sleep(_POLL_S)
            command = pickle.loads(self._comm.recv(source=0, tag=_COMMAND))
            if isinstance(command, Stop):
                self._end()
                if command.result is None:
                    raise command.error or StoppedError()
                return command.result
            if isinstance(command, ReadEnergy):
                self._gather(meter.read(), _ignore)
            elif isinstance(command, RunCollective):
                self._run_member(command, _ignore)
            elif isinstance(command, RunEach):
                self._run_drawn(command, Throttle(self._send_progress))
            else:
                self._train(command, Throttle(self._send_progress))

    def _send_progress(self, event: Progress) -> None:
        """Send progress to rank 0, unless rank 0 has not yet received the last event."""
        if self._sending_progress is None or self._sending_progress.Test():
            self._sending_progress = self._comm.isend(event, dest=0, tag=_PROGRESS)

    def finish(self, result: object) -> None:
        self._send_all(Stop(result=result))
        self._end()

    @world.signals_ignored()
    def stop(self, error: BaseException) -> None:
        if self._ended:
            return
        if isinstance(error, PbdError) and self.coordinates and not self._workers_busy:
            self._send_all(Stop(error=picklable(error)))
            self._end()
        else:
            self._runner.close()
            self.abort(error)

    def _end(self) -> None:
        """End the run in this rank, once all ranks know that it is over; until then heartbeats detect a lost rank."""
        self._runner.close()
        self._wait_for_all(_ignore)
        self._ended = True
        if self._heartbeat is not None:
            self._heartbeat.close()

    def abort(self, error: BaseException) -> NoReturn:
        world.abort(error)

    def _send_all(self, command: RunCollective | RunEach | ReadEnergy | Stop) -> None:
        for rank in range(1, self.num_workers):
            self._comm.send(cloudpickle.dumps(command), dest=rank, tag=_COMMAND)


def _ignore(event: Progress) -> None:
    """Ignore a progress event."""
