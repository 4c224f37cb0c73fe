"""The client of a Dask cluster: which workers there are, and the futures of the tasks that they run."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

import dask
from distributed.client import ClosedClientError

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, NoWorkersError
from pbd.executors.dask import collective as dask_collective
from pbd.executors.dask import connection
from pbd.executors.dask.results import scheduler_lost
from pbd.system import watchdog

WORKERS_LIMIT_S = 60.0
"""How long to wait for the requested number of workers at the start, and for any worker once all are gone."""
_ANSWER_LIMIT_S = 10.0
"""How long a worker may take to answer a call outside its tasks."""

T = TypeVar("T")


@dataclass(frozen=True)
class WorkersSnapshot:
    """The addresses of the workers at one time."""

    present: frozenset[str]
    ready: frozenset[str]
    """Workers that start new tasks: neither paused for lack of memory nor about to leave."""


class Cluster:
    """A client of a Dask cluster. Workers are numbered in the order of their names, later workers after them.

    Raises:
        EnvironmentMismatchError: the cluster is open to the network, or requires certificates.
        MissingInputError: the scheduler file cannot be read.
        NoWorkersError: no scheduler answers at the address, or after a minute there are too few workers.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        self._numbers: dict[str, int] = {}
        self._number_of_name: dict[str, int] = {}
        logger = logging.getLogger("distributed")
        with contextlib.ExitStack() as stack:
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.WARNING if config.verbose else logging.CRITICAL)
            self._client = stack.enter_context(connection.connect(config))
            self._scheduler_id = self._client.scheduler_info()["id"]
            self._wait_for_workers(config.workers or 1)
            self._unusable_since: float | None = None
            self.snapshot()
            self._open = stack.pop_all()

    @property
    def num_workers(self) -> int:
        """The number of workers so far, lost ones included."""
        return len(self._number_of_name)

    def number(self, address: str) -> int:
        """Return the number of the present or former worker at an address."""
        if address not in self._numbers:  # it joined after the last snapshot
            self.snapshot()
        if address not in self._numbers:  # and has left again
            self._assign_numbers({address: address})
        return self._numbers[address]

    def snapshot(self) -> WorkersSnapshot:
        """Return the present workers.

        Raises:
            NoWorkersError: the scheduler has terminated, or was replaced by another one.
        """
        watchdog.touch()
        with self._scheduler_errors():  # the cached `scheduler_info()` may name no workers while it is updated
            scheduler = self._client.sync(self._client.scheduler.identity, n_workers=-1)
        if scheduler["id"] != self._scheduler_id:
            raise scheduler_lost()
        workers = scheduler["workers"]
        self._assign_numbers({address: str(info["name"]) for address, info in workers.items()})
        ready = {address for address, info in workers.items() if info["status"] == "running"}
        return WorkersSnapshot(frozenset(workers), frozenset(ready))

    def _assign_numbers(self, names: Mapping[str, str]) -> None:
        """Number new workers by name; a worker that was restarted under its name keeps its number."""
        for address, name in sorted(names.items(), key=lambda item: (len(item[1]), item[1])):
            self._numbers[address] = self._number_of_name.setdefault(name, self.num_workers)

    def check_usable(self, usable: bool) -> None:
        """Record whether any worker runs a task or can start one.

        Raises:
            NoWorkersError: no worker has been usable for a minute.
        """
        now = time.monotonic()
        if usable:
            self._unusable_since = None
        elif self._unusable_since is None:
            self._unusable_since = now
        elif now - self._unusable_since > WORKERS_LIMIT_S:
            raise NoWorkersError(
                f"all Dask workers have been gone, or paused for lack of memory, for {WORKERS_LIMIT_S:.0f} s",
                "Finished blocks are kept: start workers, and go on with --resume --run-dir DIR.",
            )

    def has_started(self, key: str) -> bool:
        """Return whether a worker runs a task; `False` while the task waits."""
        try:
            return any(key in stacks for stacks in self._client.call_stack(keys=[key]).values())
        except KeyError:  # the scheduler does not know the task yet
            return False
        except (OSError, TimeoutError):  # its worker does not answer: the next snapshot shows whether it is lost
            return True

    def submit(
        self, key: str, function: Callable[..., T], *args: Any, worker: str | None = None, priority: int = 0
    ) -> "Future[T]":
        """Call a function in a worker, and return a future that any thread can wait for.

        Args:
            key: the task's key.
            function: the function to call.
            *args: its arguments.
            worker: the address of the worker; any by default.
            priority: tasks of higher priority start first.
        """
        options: dict[str, Any] = {} if worker is None else {"workers": [worker]}
        result: Future[T] = Future()
        with self._scheduler_errors():
            task = self._client.submit(function, *args, key=key, priority=priority, pure=False, **options)
            result.add_done_callback(lambda future: task.cancel() if future.cancelled() else None)
            self._client.loop.add_callback(self._copy_result, task, result)
        return result

    async def _copy_result(self, task: Any, future: "Future[Any]") -> None:
        """Copy a task's result or exception to a future; the client's own `get_executor()` loses some of them."""
        try:
            result = await self._client.gather(task, asynchronous=True)
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # the future was cancelled
                future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)

    def subscribe(self, topic: str, handle: Callable[[Any], None]) -> None:
        """Call `handle` with every event that workers log under a topic."""
        with self._scheduler_errors():
            self._client.subscribe_topic(topic, lambda event: handle(event[1]))

    def set_durations(self, durations: Mapping[str, float]) -> None:
        """Set the expected seconds of tasks, by the prefix of their keys."""
        settings = {f"distributed.scheduler.default-task-durations.{kind}": each for kind, each in durations.items()}
        with self._scheduler_errors():
            self._client.run_on_scheduler(dask.config.set, settings)

    @contextlib.contextmanager
    def _scheduler_errors(self) -> Iterator[None]:
        """Raise `NoWorkersError` if the scheduler is lost."""
        if self._client.status != "running":  # the client would try to connect again for half a minute
            raise scheduler_lost()
        try:
            yield
        except (OSError, TimeoutError, CancelledError, ClosedClientError) as error:
            raise scheduler_lost() from error

    def register_all_reduce(self) -> None:
        """Let present and later workers sum up the values of collectives."""
        with self._scheduler_errors():
            self._client.register_plugin(dask_collective.AllReducePlugin())

    def disconnect(self, collective: str, first: str) -> None:
        """Let all sums of a collective fail, in its first member if that is still present."""
        with contextlib.suppress(Exception):  # if it is lost, the other members' calls fail by themselves
            if first in self.snapshot().present:
                self._client.run(dask_collective.disconnect, collective=collective, workers=[first])

    def ask(self, workers: Iterable[str] | None, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call a function in workers outside their task queues, by default in all; return the results by address.

        Workers that are lost, fail, or do not answer in time are left out.
        """
        answers: dict[str, Any] = {}

        async def ask_one(worker: str) -> None:
            with contextlib.suppress(Exception):
                call = self._client.run(function, *arguments, workers=[worker], asynchronous=True)
                answers.update(await asyncio.wait_for(call, _ANSWER_LIMIT_S))

        async def ask_all(addresses: Iterable[str]) -> None:
            await asyncio.gather(*map(ask_one, addresses))

        with contextlib.suppress(Exception):
            addresses = self.snapshot().present if workers is None else workers
            with self._scheduler_errors():
                self._client.sync(ask_all, addresses)
        return answers

    def check_single_threads(self) -> None:
        """Refuse workers that would train several groups at once, each on all of the worker's cores.

        Raises:
            EnvironmentMismatchError: a worker has more than one thread.
        """
        with self._scheduler_errors():
            several = [address for address, threads in self._client.nthreads().items() if threads > 1]
        if several:
            raise EnvironmentMismatchError(
                f"work stealing needs workers of one thread. Received: more at {several[0]}. "
                "Start them with --nthreads 1, or use --scheduler pull."
            )

    def close(self) -> None:
        """Disconnect from the cluster, and end it if it was started here."""
        self._open.close()

    def _wait_for_workers(self, count: int) -> None:
        try:
            self._client.wait_for_workers(count, timeout=WORKERS_LIMIT_S)
        except TimeoutError as error:
            raise NoWorkersError(
                f"too few Dask workers after {WORKERS_LIMIT_S:.0f} s. Received: {len(self.snapshot().present)} of "
                f"{count}",
                "Start more, or lower --workers.",
            ) from error
        except OSError as error:
            raise scheduler_lost() from error
