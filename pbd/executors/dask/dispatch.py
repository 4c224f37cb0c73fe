"""Keep one task in flight on each worker of a Dask cluster; workers may join, pause and die at any time."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from pbd.executors.dask.cluster import Cluster, WorkersSnapshot
from pbd.executors.dask.results import LostWorkError, wait_for_any
from pbd.executors.isolation.retry import lost_at_every_attempt
from pbd.scheduling.dispatch import Dispatcher
from pbd.scheduling.retry import MOST_ATTEMPTS

POLL_S = 0.5
LOST = "the worker that ran it was lost (out of memory, or killed? see its own output)"

W = TypeVar("W")


@dataclasses.dataclass(frozen=True)
class Submitted(Generic[W]):
    """Work that was submitted to the cluster."""

    work: W
    key: str
    future: "Future[Any]"

    def cancel(self) -> W:
        """Cancel the task, and return its work."""
        self.future.cancel()
        return self.work

    def lost(self) -> "Submitted[W]":
        """Cancel the task, and return it with a `LostWorkError` as its result."""
        future: Future[Any] = Future()
        future.set_exception(LostWorkError(LOST))
        return dataclasses.replace(self, work=self.cancel(), future=future)


@dataclasses.dataclass(frozen=True)
class Call:
    """One of several functions to call, pickled."""

    number: int
    function: bytes
    attempt: int = 1

    def next_attempt(self, error: LostWorkError) -> "Call":
        """Return the next attempt at a call whose worker was lost.

        Raises:
            NoWorkersError: this was the last one.
        """
        if self.attempt >= MOST_ATTEMPTS:
            raise lost_at_every_attempt(str(error)) from error
        return dataclasses.replace(self, attempt=self.attempt + 1)


Submit = Callable[[W, WorkersSnapshot, str], Submitted[W]]
"""Submits work to the worker at an address; the snapshot is of all workers at this time."""


def run(cluster: Cluster, dispatcher: Dispatcher[W], submit: Submit[W]) -> Iterator[Submitted[W] | None]:
    """Yield each task that is done, and each whose worker was lost; about twice a second, `None`.

    Args:
        cluster: the workers.
        dispatcher: the work; the caller may put work back until the iterator ends.
        submit: submits work to a worker.

    Raises:
        NoWorkersError: the scheduler is lost, or no worker has been usable for a minute.
    """
    running = dict[str, Submitted[W]]()
    number = cluster.number
    while running or dispatcher.left:
        workers = cluster.snapshot()
        cluster.check_usable(bool(running or workers.ready))
        for absent in set(range(cluster.num_workers)) - set(map(number, workers.ready | running.keys())):
            dispatcher.lose(absent)
        yield from _withdraw(cluster, running, workers, dispatcher)
        for worker in sorted(workers.ready - running.keys(), key=number):
            if (work := dispatcher.take(number(worker))) is not None:
                running[worker] = submit(work, workers, worker)
        for worker in wait_for_any({worker: task.future for worker, task in running.items()}, POLL_S):
            yield running.pop(worker)
        yield None


def _withdraw(
    cluster: Cluster, running: dict[str, Submitted[W]], workers: WorkersSnapshot, dispatcher: Dispatcher[W]
) -> Iterator[Submitted[W]]:
    """Withdraw the tasks of workers that were lost, or paused before the task started; yield the lost ones."""
    for worker in running.keys() - workers.ready:
        if running[worker].future.done():
            continue
        if worker not in workers.present:
            yield running.pop(worker).lost()
        elif not cluster.has_started(running[worker].key):
            dispatcher.put_back(running.pop(worker).cancel())
