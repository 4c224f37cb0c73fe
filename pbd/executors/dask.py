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
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import cloudpickle
import dask
import distributed

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, PbdError
from pbd.executors import dask_worker
from pbd.executors.base import Emit, TrainGroup
from pbd.executors.dask_cluster import Cluster, scheduler_lost
from pbd.records import Assignment, BlockResult, LayerTask, Progress, RunReport, TaskGroup
from pbd.scheduling.dispatch import Dispatcher

MOST_ATTEMPTS = 3
"""How many workers a group may lose before it is tried task by task, and a task before it is given up."""
_POLL_S = 0.5
_COLLECT_S = 30.0
_LEAST_DURATION_S = 0.01  # Dask never steals what it takes for shorter than a millisecond

T = TypeVar("T")


class DaskExecutor:
    """Runs groups on the workers of a Dask cluster; this process only coordinates."""

    name = "dask"
    elastic = True
    local_rank = 0
    local_workers = 1
    coordinates = True

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self._topic = f"pbd-{uuid.uuid4().hex}"
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._began = 0.0
        self._cluster = Cluster(config)
        self._client = self._cluster.client
        self._client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        self._settling = self._settle_all()

    def _settle_all(self) -> list[Any]:
        """Have every worker load its backend while this process loads its own."""
        present = self._cluster.present()
        settings = self._settings(present)
        return [
            self._client.submit(dask_worker.settle, settings, workers=[worker], pure=False, priority=1)
            for worker in present
        ]

    @property
    def num_workers(self) -> int:
        """How many workers there have been so far."""
        return self._cluster.num_workers

    def call(self, function: Callable[[], T]) -> T:
        settings = self._settings(self._cluster.present())
        with _said_in_one_line():
            return self._client.submit(dask_worker.call, cloudpickle.dumps(function), settings, pure=False).result()

    def run(
        self, train_group: TrainGroup, tasks: Sequence[LayerTask], assignment: Assignment, emit: Emit
    ) -> Iterator[BlockResult]:
        self._began = time.monotonic()
        pickled = cloudpickle.dumps(train_group)
        for arrived in (self._let_steal if assignment.steals else self._hand_out)(pickled, assignment):
            self._pass_on_progress(emit)
            yield from arrived

    def _hand_out(self, pickled: bytes, assignment: Assignment) -> Iterator[Sequence[BlockResult]]:
        """Keep one group in flight per worker; yield, about twice a second, what has arrived since."""
        dispatcher, losses = Dispatcher(assignment), collections.Counter[tuple[str, ...]]()
        running: dict[str, tuple[Any, TaskGroup]] = {}
        while running or dispatcher.left:
            present, number = self._cluster.present(), self._cluster.number
            for absent in set(range(self.num_workers)) - set(map(number, present)):
                dispatcher.lose(absent)
            for worker in running.keys() - present:
                future, group = running.pop(worker)
                future.cancel()
                yield _try_again(group, losses, dispatcher)
            for worker in sorted(present - running.keys(), key=number):
                if (group := dispatcher.take(number(worker))) is not None:
                    running[worker] = (self._submit(pickled, group, present, workers=[worker]), group)
            for worker in self._finished({worker: future for worker, (future, _) in running.items()}):
                future, group = running.pop(worker)
                arrived = self._take_in(future, group)
                yield _try_again(group, losses, dispatcher) if arrived is None else arrived
            yield ()

    def _let_steal(self, pickled: bytes, assignment: Assignment) -> Iterator[Sequence[BlockResult]]:
        """Submit everything at once: Dask places the groups by their predicted times, steals, and tries again.

        It takes durations by the prefix of a task's key, so that each group needs one of its own.
        """
        present = self._cluster.present()
        self._cluster.check_single_threads()
        turns = itertools.zip_longest(*assignment.queues)
        groups = {f"pbd{_letters(at)}": group for at, group in enumerate(filter(None, itertools.chain(*turns)))}
        durations = {prefix: max(group.predicted_s or 0.0, _LEAST_DURATION_S) for prefix, group in groups.items()}
        self._client.run_on_scheduler(dask.config.set, {"distributed.scheduler.default-task-durations": durations})
        futures = {
            prefix: self._submit(pickled, group, present, key=f"{prefix}-{uuid.uuid4().hex}", priority=-at)
            for at, (prefix, group) in enumerate(groups.items())
        }
        while futures:
            self._cluster.present()
            for prefix in self._finished(futures):
                arrived = self._take_in(futures[prefix], groups[prefix])
                if arrived is not None:  # else Dask lost it again, and is at it
                    del futures[prefix]
                    yield arrived
            yield ()

    def _submit(self, pickled: bytes, group: TaskGroup, present: set[str], **options: Any) -> Any:
        return self._client.submit(dask_worker.train, pickled, group, self._settings(present), pure=False, **options)

    def _settings(self, present: set[str]) -> dask_worker.Settings:
        hosts = collections.Counter(map(dask_worker.host, present))
        return dask_worker.Settings(self._config.threads_per_worker, self._config.verbose, dict(hosts), self._topic)

    def _finished(self, futures: Mapping[str, Any]) -> list[str]:
        """Wait a little for any of these, and return the keys of those that are done."""
        if not futures:
            time.sleep(_POLL_S)
            return []
        try:
            with self._client.as_current():
                distributed.wait(list(futures.values()), timeout=_POLL_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return []
        except CancelledError as error:
            raise scheduler_lost() from error
        return [key for key, future in futures.items() if future.done()]

    def _take_in(self, future: Any, group: TaskGroup) -> list[BlockResult] | None:
        """Return the results of a group with its worker and times; `None` if they were lost on the way."""
        try:
            with _said_in_one_line():
                done: dask_worker.Done = future.result(timeout=_COLLECT_S)
        except TimeoutError:
            return None
        except distributed.KilledWorker:
            return _given_up(group)
        now_s, number = time.monotonic() - self._began, self._cluster.number(done.worker)
        return [
            dataclasses.replace(result, worker=number, started_s=max(0.0, now_s - result.seconds))
            for result in done.results
        ]

    def _pass_on_progress(self, emit: Emit) -> None:
        while not self._events.empty():
            event = self._events.get()
            emit(Progress(**event | {"worker": self._cluster.number(event["worker"])}))

    def serve(self) -> RunReport:
        raise RuntimeError("Dask's workers are processes of their own; there is none here to serve")

    def finish(self, report: RunReport) -> None:
        self._cluster.close()

    def stop(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):  # what ended the run is worth more than what happens while leaving
            self._cluster.close()


@contextlib.contextmanager
def _said_in_one_line() -> Iterator[None]:
    """Turn what went wrong in a worker, apart from its death, into something that a user can act on."""
    try:
        yield
    except (TimeoutError, distributed.KilledWorker, PbdError):
        raise
    except CancelledError as error:
        raise scheduler_lost() from error
    except Exception as error:
        said = " ".join(str(error).split())
        raise EnvironmentMismatchError(
            f"every Dask worker must have this pbd and see the run directory. Received: {type(error).__name__}: "
            f"{said}. Start the workers where python -m pbd.run works."
        ) from error


def _try_again(
    group: TaskGroup, losses: collections.Counter[tuple[str, ...]], dispatcher: Dispatcher
) -> list[BlockResult]:
    """Put a group whose worker was lost back to be done; give it up where that happens every time."""
    losses[group.layer_names] += 1
    if losses[group.layer_names] < MOST_ATTEMPTS:
        dispatcher.put_back(group)
    elif len(group.tasks) > 1:
        for task in reversed(group.tasks):
            dispatcher.put_back(TaskGroup((task,)))
    else:
        return _given_up(group)
    return []


def _given_up(group: TaskGroup) -> list[BlockResult]:
    message = "every worker that trained it was lost: out of memory, or killed? See the workers' own output."
    return [BlockResult(name, "failed", block="", error=message) for name in group.layer_names]


def _letters(number: int) -> str:
    """Return a number in letters: Dask takes the digits of a key for what tells tasks of one kind apart."""
    rest, last = divmod(number, len(string.ascii_lowercase))
    return (_letters(rest - 1) if rest else "") + string.ascii_lowercase[last]
