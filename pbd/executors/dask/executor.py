"""Dask executor: groups go to the workers of a cluster, one at a time each, or all at once for Dask to steal.

Workers may join and die at any time: the group of a lost worker is retried by another one, and a result that has
arrived here is never computed again. All workers must see the run directory.
"""

import collections
import contextlib
import dataclasses
import itertools
import queue
import string
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

import cloudpickle

from pbd import energy
from pbd.collective import Collective
from pbd.config import ExecutionConfig
from pbd.executors.base import CheckpointToken, TrainGroup, no_checkpoint
from pbd.executors.dask import dispatch
from pbd.executors.dask import worker as worker_tasks
from pbd.executors.dask.cluster import Cluster, WorkersSnapshot
from pbd.executors.dask.collective import members
from pbd.executors.dask.dispatch import LOST, POLL_S, Call, Submitted
from pbd.executors.dask.energy import ClusterMeters
from pbd.executors.dask.results import LostWorkError, first_result, result_of, wait_for_any
from pbd.executors.isolation.retry import failed_results, retry_lost
from pbd.executors.isolation.runner import unpickled
from pbd.records import Assignment, BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.scheduling.dispatch import Dispatcher
from pbd.scheduling.retry import split_for_retry
from pbd.system import devices, watchdog
from pbd.system.keras_state import KerasSetup

_SHORTEST_DURATION_S = 0.01  # Dask never steals tasks that are shorter than a millisecond

T = TypeVar("T")


class DaskExecutor:
    """Runs groups on the workers of a Dask cluster; this process only coordinates.

    Raises:
        EnvironmentMismatchError: the cluster is open to the network, or requires certificates.
        MissingInputError: the scheduler file cannot be read.
        NoWorkersError: no scheduler answers, or there are too few workers.
    """

    name = "dask"
    elastic = True
    coordinates = True

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self.share = devices.Share(threads=config.threads_per_worker, verbose=config.verbose)
        self._run, self._keras = _letters(uuid.uuid4().int), KerasSetup.here()
        self._topic = f"pbd-{self._run}"
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._began = 0.0
        self._cluster = Cluster(config)
        try:
            self._cluster.subscribe(self._topic, self._events.put)
            self._meters = ClusterMeters(self._cluster, energy.host_identity())
            self._set_ups = self._set_up_workers()  # Dask cancels the task of a future that is dropped
        except BaseException:
            self._cluster.close()
            raise

    def _set_up_workers(self) -> list["Future[Any]"]:
        """Let every worker load its backend while this process loads its own."""
        workers = self._cluster.snapshot()
        settings, submit = self._settings(workers), self._cluster.submit
        return [submit(_key("set-up"), worker_tasks.set_up, settings, worker=worker) for worker in workers.ready]

    @property
    def num_workers(self) -> int:
        """The number of workers so far, lost ones included."""
        return self._cluster.num_workers

    @property
    def collective_size(self) -> int:
        """The number of workers that are ready now; if there is none, it waits for the first."""
        return len(self._wait_for_ready_workers().ready)

    def call(self, function: Callable[[], T]) -> T:
        pickled = cloudpickle.dumps(function)

        def attempt() -> T:
            workers = self._wait_for_ready_workers()
            worker, key = min(workers.ready, key=self._cluster.number), _key("call")
            future = self._cluster.submit(key, worker_tasks.call, pickled, self._settings(workers), worker=worker)
            self._wait_for(worker, key, future)
            return result_of(future, unpickled)

        return retry_lost(attempt, LostWorkError)

    def run_each(
        self, functions: Sequence[Callable[[Collective, ProgressCallback], T]], progress: ProgressCallback
    ) -> list[T]:
        calls = [Call(number, cloudpickle.dumps(function)) for number, function in enumerate(functions)]
        results, dispatcher = dict[int, T](), Dispatcher[Call]((), calls)
        for task in dispatch.run(self._cluster, dispatcher, self._submit_call):
            self._report_progress(progress)
            if task is None:
                continue
            try:
                results[task.work.number] = result_of(task.future, unpickled)
            except LostWorkError as error:
                dispatcher.put_back(task.work.next_attempt(error))
        return [results[number] for number in range(len(functions))]

    def _submit_call(self, call: Call, workers: WorkersSnapshot, worker: str) -> Submitted[Call]:
        key, settings = _key("call"), self._settings(workers)
        future = self._cluster.submit(key, worker_tasks.run_work, call.function, settings, worker=worker)
        return Submitted(call, key, future)

    def run_collective(
        self,
        function: Callable[[Collective, ProgressCallback], T],
        progress: ProgressCallback,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        pickled = cloudpickle.dumps(function)
        self._cluster.register_all_reduce()

        def attempt() -> T:
            return self._attempt_collective(pickled, self._wait_for_ready_workers(), progress, max_workers)

        return retry_lost(attempt, LostWorkError, checkpoint=checkpoint)

    def _wait_for_ready_workers(self) -> WorkersSnapshot:
        while not (workers := self._cluster.snapshot()).ready:
            self._cluster.check_usable(False)
            time.sleep(POLL_S)
        self._cluster.check_usable(True)
        return workers

    def _attempt_collective(
        self, pickled: bytes, workers: WorkersSnapshot, progress: ProgressCallback, max_workers: int
    ) -> Any:
        """Call a pickled function in at most `max_workers` ready workers as a collective; return member 0's result.

        Raises:
            LostWorkError: a member was lost.
        """
        settings, name = self._settings(workers), _key("collective")
        addresses = sorted(workers.ready, key=self._cluster.number)[:max_workers]
        keys = {worker: _key("member") for worker in addresses}
        submit, run_member = self._cluster.submit, worker_tasks.run_member
        futures = {
            worker: submit(keys[worker], run_member, pickled, member, settings, worker=worker)
            for worker, member in zip(addresses, members(name, addresses), strict=True)
        }
        try:
            self._wait_for_members(name, keys, futures, progress)
        except BaseException:
            self._cluster.disconnect(name, addresses[0])
            for future in futures.values():
                future.cancel()
            raise
        return first_result(list(futures.values()))

    def _wait_for_members(
        self, name: str, keys: Mapping[str, str], futures: "Mapping[str, Future[Any]]", progress: ProgressCallback
    ) -> None:
        """Wait until all members of a collective are done; once one has failed, let the others' sums fail.

        Raises:
            LostWorkError: a member was lost.
        """
        disconnected = False
        while running := {worker: future for worker, future in futures.items() if not future.done()}:
            if not disconnected and any(future.done() and future.exception() for future in futures.values()):
                self._cluster.disconnect(name, next(iter(futures)))
                disconnected = True
            wait_for_any(running, POLL_S)
            self._report_progress(progress)
            self._check_workers({keys[worker]: worker for worker in running})

    def _check_workers(self, worker_of_key: Mapping[str, str]) -> None:
        """Check that each worker can still run the task that was submitted to it.

        Raises:
            LostWorkError: one is gone, or was paused before the task started.
        """
        workers = self._cluster.snapshot()
        for key, worker in worker_of_key.items():
            if worker not in workers.present or (worker not in workers.ready and not self._cluster.has_started(key)):
                raise LostWorkError("a worker was lost or paused (out of memory, or killed? see its own output)")

    def _wait_for(self, worker: str, key: str, future: "Future[Any]") -> None:
        """Wait until a task is done.

        Raises:
            LostWorkError: its worker is gone, or was paused before the task started.
        """
        while not wait_for_any({key: future}, POLL_S):
            try:
                self._check_workers({key: worker})
            except LostWorkError:
                future.cancel()
                raise

    def run(self, train_group: TrainGroup, assignment: Assignment, progress: ProgressCallback) -> Iterator[BlockResult]:
        self._began = time.monotonic()
        pickled = cloudpickle.dumps(train_group)
        run = self._run_stealing if assignment.steals else self._run_dispatched
        for results in run(pickled, assignment):
            self._report_progress(progress)
            yield from results

    def _run_dispatched(self, pickled: bytes, assignment: Assignment) -> Iterator[Sequence[BlockResult]]:
        """Keep one group in flight per worker; yield new results about twice a second."""
        dispatcher = Dispatcher.of(assignment)

        def submit(group: TaskGroup, workers: WorkersSnapshot, worker: str) -> Submitted[TaskGroup]:
            return self._submit(pickled, group, workers, worker=worker)

        for task in dispatch.run(self._cluster, dispatcher, submit):
            if task is None:
                yield ()
                continue
            results = self._results(task)
            yield _put_back(task.work, dispatcher) if results is None else results

    def _run_stealing(self, pickled: bytes, assignment: Assignment) -> Iterator[Sequence[BlockResult]]:
        """Submit all groups at once: Dask places them by their predicted times, steals, and retries.

        Dask looks up durations by the prefix of a task's key, so that each group needs its own prefix. If a worker
        dies, Dask also blames tasks that only waited there; groups that it gave up are dispatched as single tasks.
        """
        workers = self._cluster.snapshot()
        self._cluster.check_single_threads()
        interleaved = filter(None, itertools.chain(*itertools.zip_longest(*assignment.queues)))
        groups = {f"{self._run}x{_letters(at)}": group for at, group in enumerate(interleaved)}
        self._cluster.set_durations(
            {kind: max(group.predicted_s or 0.0, _SHORTEST_DURATION_S) for kind, group in groups.items()}
        )
        running = {
            kind: self._submit(pickled, group, workers, kind=kind, priority=-at)
            for at, (kind, group) in enumerate(groups.items())
        }
        given_up: list[TaskGroup] = []
        while running:
            self._cluster.check_usable(bool(self._cluster.snapshot().present))
            for kind in wait_for_any({kind: task.future for kind, task in running.items()}, POLL_S):
                task = running.pop(kind)
                results = self._results(task)
                given_up += [task.work] if results is None else []
                yield results or ()
            yield ()
        singles = tuple(TaskGroup((task,)) for group in given_up for task in group.tasks)
        queues = ((),) * len(assignment.queues)
        yield from self._run_dispatched(pickled, dataclasses.replace(assignment, queues=queues, pool=singles))

    def _submit(
        self, pickled: bytes, group: TaskGroup, workers: WorkersSnapshot, kind: str = "group", **options: Any
    ) -> Submitted[TaskGroup]:
        key = _key(kind)
        future = self._cluster.submit(key, worker_tasks.train, pickled, group, self._settings(workers), **options)
        return Submitted(group, key, future)

    def _settings(self, workers: WorkersSnapshot) -> worker_tasks.Settings:
        hosts = collections.Counter(map(worker_tasks.host, workers.present))
        return worker_tasks.Settings(self._config, dict(hosts), self._topic, self._keras)

    def _results(self, task: Submitted[TaskGroup]) -> list[BlockResult] | None:
        """Return the results of a finished group with its worker and times; `None` if its workers died."""
        try:
            finished = result_of(task.future)
        except LostWorkError:
            return None
        ended_s, number = time.monotonic() - self._began, self._cluster.number(finished.worker)
        started_s = max(0.0, ended_s - finished.seconds)  # clocks of hosts differ, durations do not
        return [dataclasses.replace(result, worker=number, started_s=started_s) for result in finished.results]

    def _report_progress(self, progress: ProgressCallback) -> None:
        while not self._events.empty():
            event = self._events.get()
            progress(Progress(**event | {"worker": self._cluster.number(event["worker"])}))

    def readings(self) -> dict[int, energy.Reading]:
        return self._meters.read()

    def serve(self) -> Any:
        raise RuntimeError("Dask's workers are processes of their own; there is none here to serve")

    def finish(self, result: object) -> None:
        self._leave()

    def stop(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # `error` must reach the user, not a failure to leave
            self._leave()

    def abort(self, error: BaseException) -> NoReturn:
        watchdog.exit_process(error)

    def _leave(self) -> None:
        self._meters.end()
        self._cluster.ask(None, worker_tasks.end_run, self._topic)
        self._cluster.close()


def _put_back(group: TaskGroup, dispatcher: Dispatcher[TaskGroup]) -> list[BlockResult]:
    """Return the group of a lost worker to the dispatcher as smaller groups; after the last attempt, fail it."""
    for part in reversed(split_for_retry(group)):
        dispatcher.put_back(part)
    return failed_results(group, LOST)


def _key(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _letters(number: int) -> str:
    """Return a number in letters: digits in a key would not belong to its prefix."""
    rest, last = divmod(number, len(string.ascii_lowercase))
    return (_letters(rest - 1) if rest else "") + string.ascii_lowercase[last]
