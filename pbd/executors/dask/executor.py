"""Dask: groups go to the workers of a `dask.distributed` cluster, one at a time each, or all at once for it to steal.

Workers may join and die at any time: what a lost worker was training is given to another one, and nothing that has
arrived here is asked for again. The run directory must lie where all workers see it.
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
from typing import Any, TypeVar

import cloudpickle

from pbd import energy
from pbd.collective import Collective
from pbd.config import ExecutionConfig
from pbd.executors.base import CheckpointToken, Emit, TrainGroup, no_checkpoint
from pbd.executors.dask import worker as worker_tasks
from pbd.executors.dask.cluster import Cluster, LostWorkError, WorkersSnapshot, finished, of_the_first, outcome
from pbd.executors.dask.collective import memberships
from pbd.executors.dask.energy import ClusterMeters
from pbd.executors.isolation.retry import given_up, retry_lost
from pbd.records import Assignment, BlockResult, BlockTask, Progress, RunReport, TaskGroup
from pbd.scheduling.dispatch import Dispatcher
from pbd.scheduling.retry import again
from pbd.system import devices
from pbd.system.keras_state import KerasSetup

_POLL_S = 0.5
_LEAST_DURATION_S = 0.01  # Dask never steals what it takes for shorter than a millisecond

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A group that is with the cluster."""

    group: TaskGroup
    key: str
    future: "Future[worker_tasks.Done]"


class DaskExecutor:
    """Runs groups on the workers of a Dask cluster; this process only coordinates."""

    name = "dask"
    elastic = True
    coordinates = True

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self.share = devices.Share(threads=config.threads_per_worker, verbose=config.verbose)
        self._run, self._keras = _letters(uuid.uuid4().int), KerasSetup.here()
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._began = 0.0
        self._cluster = Cluster(config)
        try:
            self._cluster.subscribe(self._topic, self._events.put)
            self._meters = ClusterMeters(self._cluster, energy.host_identity())
            self._settling = self._set_up_all()
        except BaseException:
            self._cluster.close()
            raise

    @property
    def _topic(self) -> str:
        return f"pbd-{self._run}"

    def _set_up_all(self) -> list["Future[None]"]:
        """Have every worker load its backend while this process loads its own."""
        roll = self._cluster.look()
        settings = self._settings(roll)
        submit = self._cluster.submit
        return [submit(self._key(), worker_tasks.set_up_worker, settings, worker=worker) for worker in roll.ready]

    @property
    def num_workers(self) -> int:
        """How many workers there have been so far."""
        return self._cluster.num_workers

    @property
    def collective_size(self) -> int:
        """How many workers are ready now."""
        return len(self._cluster.look().ready)

    def call(self, function: Callable[[], T]) -> T:
        pickled = cloudpickle.dumps(function)

        def attempt() -> T:
            roll = self._when_ready()
            worker, key = min(roll.ready, key=self._cluster.number), self._key()
            future = self._cluster.submit(key, worker_tasks.call, pickled, self._settings(roll), worker=worker)
            self._wait_for(worker, key, future)
            return outcome(future, cloudpickle.loads)

        return retry_lost(attempt, LostWorkError)

    def run_collective(
        self,
        function: Callable[[Collective, Emit], T],
        emit: Emit,
        max_workers: int,
        checkpoint: CheckpointToken = no_checkpoint,
    ) -> T:
        pickled = cloudpickle.dumps(function)
        self._cluster.admit_teams()
        return retry_lost(
            lambda: self._as_team(pickled, self._when_ready(), emit, max_workers), LostWorkError, checkpoint=checkpoint
        )

    def _when_ready(self) -> WorkersSnapshot:
        """Wait until there are workers."""
        while not (roll := self._cluster.look()).ready:
            self._cluster.expect_work(hopeful=False)
            time.sleep(_POLL_S)
        self._cluster.expect_work(hopeful=True)
        return roll

    def _as_team(self, pickled: bytes, roll: WorkersSnapshot, emit: Emit, max_workers: int) -> Any:
        """Return what the first of the ready workers gives.

        Raises:
            LostWorkError: one of them is gone.
        """
        settings, name = self._settings(roll), self._key("collective")
        collective = sorted(roll.ready, key=self._cluster.number)[:max_workers]
        places = dict(zip(collective, memberships(name, collective), strict=True))
        keys = {worker: self._key("join") for worker in collective}
        submit = self._cluster.submit
        sent = {w: submit(keys[w], worker_tasks.join, pickled, places[w], settings, worker=w) for w in collective}
        lost = False
        try:
            while left := {worker: future for worker, future in sent.items() if not future.done()}:
                if not lost and any(future.done() and future.exception() for future in sent.values()):
                    self._cluster.lose(name, collective[0])  # the others would wait for whoever has left
                    lost = True
                finished(left, _POLL_S)
                self._pass_on_progress(emit)
                self._check_there({keys[worker]: worker for worker in left})
        except BaseException:
            self._cluster.lose(name, collective[0])
            for future in sent.values():
                future.cancel()
            raise
        return of_the_first(list(sent.values()))

    def _check_there(self, workers: Mapping[str, str]) -> None:
        """Check that each worker can still do the piece of work that was sent to it.

        Raises:
            LostWorkError: one is gone, or was paused before it began.
        """
        roll = self._cluster.look()
        for key, worker in workers.items():
            if worker not in roll.there or (worker not in roll.ready and not self._cluster.has_begun(key)):
                raise LostWorkError("a worker was lost or paused (out of memory, or killed? see its own output)")

    def _wait_for(self, worker: str, key: str, future: "Future[Any]") -> None:
        """Wait for a worker to be done with something.

        Raises:
            LostWorkError: it is gone, or was paused before it began.
        """
        while not finished({key: future}, _POLL_S):
            try:
                self._check_there({key: worker})
            except LostWorkError:
                future.cancel()
                raise

    def run(
        self, train_group: TrainGroup, tasks: Sequence[BlockTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        self._began = time.monotonic()
        pickled = cloudpickle.dumps(train_group)
        arriving = (
            self._let_steal(pickled, assignment)
            if assignment.steals
            else self._hand_out(pickled, Dispatcher(assignment))
        )
        for arrived in arriving:
            self._pass_on_progress(emit)
            yield from arrived

    def _hand_out(self, pickled: bytes, dispatcher: Dispatcher) -> Iterator[Sequence[BlockResult]]:
        """Keep one group in flight per worker; yield, about twice a second, what has arrived since."""
        running: dict[str, _Sent] = {}
        number = self._cluster.number
        while running or dispatcher.left:
            roll = self._cluster.look()
            self._cluster.expect_work(bool(running or roll.ready))
            for absent in set(range(self.num_workers)) - set(map(number, roll.ready | running.keys())):
                dispatcher.lose(absent)
            for worker in running.keys() - roll.ready:  # lost, or paused for want of memory
                if running[worker].future.done():
                    continue
                if worker not in roll.there:
                    yield _try_again(_withdrawn(running.pop(worker)), dispatcher)
                elif not self._cluster.has_begun(running[worker].key):
                    dispatcher.put_back(_withdrawn(running.pop(worker)))
            for worker in sorted(roll.ready - running.keys(), key=number):
                if (group := dispatcher.take(number(worker))) is not None:
                    running[worker] = self._send(pickled, group, roll, worker=worker)
            for worker in finished({worker: sent.future for worker, sent in running.items()}, _POLL_S):
                sent = running.pop(worker)
                arrived = self._take_in(sent)
                yield _try_again(sent.group, dispatcher) if arrived is None else arrived
            yield ()

    def _let_steal(self, pickled: bytes, assignment: Assignment) -> Iterator[Sequence[BlockResult]]:
        """Send everything at once: Dask places the groups by their predicted times, steals, and tries again.

        It takes durations by the letters that a task's key begins with, so that each group needs its own. When a worker
        dies it blames whatever waited there as well, so that what it gives up for that is handed out one by one.
        """
        roll = self._cluster.look()
        self._cluster.check_single_threads()
        in_turns = filter(None, itertools.chain(*itertools.zip_longest(*assignment.queues)))
        groups = {f"{self._run}x{_letters(at)}": group for at, group in enumerate(in_turns)}
        durations = {kind: max(group.predicted_s or 0.0, _LEAST_DURATION_S) for kind, group in groups.items()}
        self._cluster.predict(durations)
        running = {
            kind: self._send(pickled, group, roll, kind=kind, priority=-at)
            for at, (kind, group) in enumerate(groups.items())
        }
        blamed: list[TaskGroup] = []
        while running:
            self._cluster.expect_work(bool(self._cluster.look().there))
            for kind in finished({kind: sent.future for kind, sent in running.items()}, _POLL_S):
                sent = running.pop(kind)
                arrived = self._take_in(sent)
                blamed += [sent.group] if arrived is None else []
                yield arrived or ()
            yield ()
        singly = tuple(TaskGroup((task,)) for group in blamed for task in group.tasks)
        queues = ((),) * len(assignment.queues)
        yield from self._hand_out(pickled, Dispatcher(dataclasses.replace(assignment, queues=queues, pool=singly)))

    def _send(
        self, pickled: bytes, group: TaskGroup, roll: WorkersSnapshot, kind: str = "group", **options: Any
    ) -> _Sent:
        key = self._key(kind)
        future = self._cluster.submit(key, worker_tasks.train, pickled, group, self._settings(roll), **options)
        return _Sent(group, key, future)

    def _key(self, kind: str = "settle") -> str:
        return f"{kind}-{uuid.uuid4().hex}"

    def _settings(self, roll: WorkersSnapshot) -> worker_tasks.Settings:
        hosts = collections.Counter(map(worker_tasks.host, roll.there))
        return worker_tasks.Settings(self._config, dict(hosts), self._topic, self._keras)

    def _take_in(self, sent: _Sent) -> list[BlockResult] | None:
        """Return the results of a group with its worker and times; `None` if its workers died."""
        try:
            done = outcome(sent.future)
        except LostWorkError:
            return None
        ended_s, number = time.monotonic() - self._began, self._cluster.number(done.worker)
        started_s = max(0.0, ended_s - done.seconds)
        return [dataclasses.replace(result, worker=number, started_s=started_s) for result in done.results]

    def _pass_on_progress(self, emit: Emit) -> None:
        while not self._events.empty():
            event = self._events.get()
            emit(Progress(**event | {"worker": self._cluster.number(event["worker"])}))

    def readings(self) -> dict[int, energy.Reading]:
        return self._meters.read()

    def serve(self) -> RunReport:
        raise RuntimeError("Dask's workers are processes of their own; there is none here to serve")

    def finish(self, report: RunReport) -> None:
        self._leave()

    def stop(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # what ended the run is worth more than what happens while leaving
            self._leave()

    def _leave(self) -> None:
        self._meters.end()
        self._cluster.ask(None, worker_tasks.leave, self._topic)
        self._cluster.close()


def _withdrawn(sent: _Sent) -> TaskGroup:
    sent.future.cancel()
    return sent.group


def _try_again(group: TaskGroup, dispatcher: Dispatcher) -> list[BlockResult]:
    """Put a group whose worker was lost back to be done, less at a time; give it up where that happens every time."""
    for part in reversed(again(group)):
        dispatcher.put_back(part)
    return given_up(group, "the worker that trained it was lost (out of memory, or killed? see its own output)")


def _letters(number: int) -> str:
    """Return a number in letters: Dask takes the digits of a key for what tells tasks of one kind apart."""
    rest, last = divmod(number, len(string.ascii_lowercase))
    return (_letters(rest - 1) if rest else "") + string.ascii_lowercase[last]
