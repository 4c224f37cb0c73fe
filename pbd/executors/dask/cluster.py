"""A Dask cluster as the executor sees it: who is there, and what becomes of the work they are sent."""

import asyncio
import concurrent.futures
import contextlib
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

import cloudpickle
import dask
import distributed
from distributed.client import ClosedClientError

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, NoWorkersError, PbdError
from pbd.executors.dask import collective as dask_collective
from pbd.executors.dask import connection
from pbd.system import watchdog

PATIENCE_S = 60.0
"""How long to wait for workers: for as many as were asked for at the start, for any once all are gone."""
_ANSWER_S = 10.0
"""How long a worker that is asked something beside its work may take to answer."""

T = TypeVar("T")


class LostWorkError(Exception):
    """Dask gave some work up because several workers died that had it."""


@dataclass(frozen=True)
class WorkersSnapshot:
    """The addresses of the workers at one time."""

    there: frozenset[str]
    ready: frozenset[str]
    """Those that begin new work: not paused for want of memory, and not about to leave."""


class Cluster:
    """A client of a Dask cluster; the workers are numbered in the order of their names, newcomers after them.

    Raises:
        EnvironmentMismatchError: the cluster is open to the network, or wants certificates.
        MissingInputError: the scheduler file cannot be read.
        NoWorkersError: nobody answers at the address, or there are fewer workers than asked for after a minute.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        logging.getLogger("distributed").setLevel(logging.WARNING if config.verbose else logging.CRITICAL)
        self._numbers: dict[str, int] = {}
        self._number_of_name: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            self._client = stack.enter_context(connection.connect(config))
            self._scheduler_id = self._client.scheduler_info()["id"]
            self._wait_for_workers(config.workers or 1)
            self._idle_since: float | None = None
            self.look()
            self._open = stack.pop_all()

    @property
    def num_workers(self) -> int:
        """How many workers there have been so far."""
        return len(self._number_of_name)

    def number(self, address: str) -> int:
        """Return the number of the worker that is, or was, at this address."""
        if address not in self._numbers:  # it came since the last look
            self.look()
        if address not in self._numbers:  # and went
            self._number({address: address})
        return self._numbers[address]

    def look(self) -> WorkersSnapshot:
        """Return the workers that are there now.

        Raises:
            NoWorkersError: the scheduler is gone, or is not the one that was asked to do the work.
        """
        watchdog.touch()
        with self._scheduler_there():  # not `scheduler_info()`: its copy, which others write, may name no workers
            scheduler = self._client.sync(self._client.scheduler.identity, n_workers=-1)
        if scheduler["id"] != self._scheduler_id:
            raise scheduler_lost()
        workers = scheduler["workers"]
        self._number({address: str(known["name"]) for address, known in workers.items()})
        ready = {address for address, known in workers.items() if known["status"] == "running"}
        return WorkersSnapshot(frozenset(workers), frozenset(ready))

    def _number(self, names: Mapping[str, str]) -> None:
        """Number new workers by name: one that was started again under its name keeps its number."""
        for address, name in sorted(names.items(), key=lambda named: (len(named[1]), named[1])):
            self._numbers[address] = self._number_of_name.setdefault(name, self.num_workers)

    def expect_work(self, hopeful: bool) -> None:
        """Take note whether anybody works or could begin to.

        Raises:
            NoWorkersError: nobody did for a minute.
        """
        now = time.monotonic()
        if hopeful:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > PATIENCE_S:
            raise NoWorkersError(
                f"all Dask workers have been gone, or paused for want of memory, for {PATIENCE_S:.0f} s. Finished "
                "blocks are kept: start workers, and go on with --resume --run-dir DIR."
            )

    def has_begun(self, key: str) -> bool:
        """Return whether a worker is at this piece of work, and does not only have it waiting."""
        try:
            return any(key in stacks for stacks in self._client.call_stack(keys=[key]).values())
        except KeyError:  # the scheduler has not read of it yet
            return False
        except (OSError, TimeoutError):  # its worker does not answer: the next look tells why
            return True

    def submit(
        self, key: str, function: Callable[..., T], *args: Any, worker: str | None = None, priority: int = 0
    ) -> "Future[T]":
        """Have a worker, this one if one is given, call a function; tasks of higher priority begin first."""
        options: dict[str, Any] = {} if worker is None else {"workers": [worker]}
        answer: Future[T] = Future()
        with self._scheduler_there():
            task = self._client.submit(function, *args, key=key, priority=priority, pure=False, **options)
            answer.add_done_callback(lambda answer: task.cancel() if answer.cancelled() else None)
            self._client.loop.add_callback(self._answer, task, answer)
        return answer

    async def _answer(self, task: Any, answer: "Future[Any]") -> None:
        """Pass on what a task gives to a future that any thread can wait for: `get_executor()` loses some outcomes."""
        try:
            result = await self._client.gather(task, asynchronous=True)
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # it was withdrawn
                answer.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                answer.set_result(result)

    def subscribe(self, topic: str, handle: Callable[[Any], None]) -> None:
        """Pass on what workers log under this topic."""
        with self._scheduler_there():
            self._client.subscribe_topic(topic, lambda event: handle(event[1]))

    def predict(self, durations: Mapping[str, float]) -> None:
        """Tell the scheduler how many seconds each kind of task will take (a kind is what its keys begin with)."""
        told = {f"distributed.scheduler.default-task-durations.{kind}": each for kind, each in durations.items()}
        with self._scheduler_there():
            self._client.run_on_scheduler(dask.config.set, told)

    @contextlib.contextmanager
    def _scheduler_there(self) -> Iterator[None]:
        if self._client.status != "running":  # it would try for half a minute to connect again
            raise scheduler_lost()
        try:
            yield
        except (OSError, TimeoutError, CancelledError, ClosedClientError) as error:
            raise scheduler_lost() from error

    def admit_teams(self) -> None:
        """Let workers, those that come later too, add up what collectives bring to them."""
        with self._scheduler_there():
            self._client.register_plugin(dask_collective.AllReducePlugin())

    def lose(self, collective: str, worker: str) -> None:
        """Tell the worker where a collective meets that it is lost, if it is there still."""
        with contextlib.suppress(Exception):  # who meets at a worker that is gone has noticed
            if worker in self.look().there:
                self._client.run(dask_collective.lose, collective=collective, workers=[worker])

    def ask(self, workers: Iterable[str] | None, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Return what workers, or all, answer beside their work; who is gone, or does not in time, is left out."""
        answers: dict[str, Any] = {}

        async def ask_one(worker: str) -> None:
            with contextlib.suppress(Exception):
                asked = self._client.run(function, *arguments, workers=[worker], asynchronous=True)
                answers.update(await asyncio.wait_for(asked, _ANSWER_S))

        async def ask_all(asked: Iterable[str]) -> None:
            await asyncio.gather(*map(ask_one, asked))

        with contextlib.suppress(Exception):
            there = self.look().there if workers is None else workers
            with self._scheduler_there():
                self._client.sync(ask_all, there)
        return answers

    def check_single_threads(self) -> None:
        """Refuse workers that would train several groups at once, each on all of the worker's cores.

        Raises:
            EnvironmentMismatchError: a worker has more than one thread.
        """
        with self._scheduler_there():
            several = [address for address, threads in self._client.nthreads().items() if threads > 1]
        if several:
            raise EnvironmentMismatchError(
                f"work stealing needs workers of one thread. Received: more at {several[0]}. "
                "Start them with --nthreads 1, or use --scheduler pull."
            )

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self._open.close()

    def _wait_for_workers(self, wanted: int) -> None:
        try:
            self._client.wait_for_workers(wanted, timeout=PATIENCE_S)
        except TimeoutError as error:
            raise NoWorkersError(
                f"too few Dask workers after {PATIENCE_S:.0f} s. Received: {len(self.look().there)} of {wanted}. "
                "Start more, or lower --workers."
            ) from error
        except OSError as error:
            raise scheduler_lost() from error


def finished(futures: "Mapping[str, Future[Any]]", timeout_s: float) -> list[str]:
    """Wait a little for any of these, and return the keys of those that are done."""
    if not futures:
        time.sleep(timeout_s)
    concurrent.futures.wait(futures.values(), timeout_s, concurrent.futures.FIRST_COMPLETED)
    return [key for key, future in futures.items() if future.done()]


def outcome(future: "Future[Any]", read: Callable[[Any], Any] = lambda result: result) -> Any:
    """Return what a finished piece of work gave.

    Args:
        future: of the work.
        read: makes of it what is returned.

    Raises:
        LostWorkError: the workers that had it died.
        NoWorkersError: the scheduler was lost.
        EnvironmentMismatchError: a worker could not read what it was sent, or sent what cannot be read.
        Exception: any other is the work's own.
    """
    try:
        return read(future.result())
    except CancelledError as error:
        raise scheduler_lost() from error
    except distributed.KilledWorker as error:
        raise LostWorkError(str(error)) from error
    except PbdError:
        raise
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())
        raise EnvironmentMismatchError(
            f"every Dask worker must have this pbd. Received: {type(error).__name__}: {said}. "
            "Start the workers where python -m pbd.run works."
        ) from error


def of_the_first(futures: Sequence["Future[Any]"]) -> Any:
    """Return what the first of a collective gave; why a worker gave up counts for more than that the others had to."""
    consequences: list[CollectiveAbortedError | CollectiveLostError] = []
    for future in futures:
        try:
            outcome(future)
        except (CollectiveAbortedError, CollectiveLostError) as error:
            consequences.append(error)
    if consequences:
        raise LostWorkError(str(consequences[0])) from consequences[0]
    return outcome(futures[0], cloudpickle.loads)


def scheduler_lost() -> NoWorkersError:
    """Return what is said when the scheduler no longer answers."""
    return NoWorkersError(
        "the Dask scheduler is gone. Finished blocks are kept: start it and its workers again, and go on with "
        "--resume --run-dir DIR."
    )
