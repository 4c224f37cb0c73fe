"""The results of futures of Dask tasks, with Dask's errors translated into pbd's."""

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import distributed

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.errors import NoWorkersError
from pbd.executors.isolation import runner


class LostWorkError(Exception):
    """A task was given up because its worker, or several workers one after another, died."""


class TaskError(Exception):
    """An exception that a task raised in its worker; Dask's own failures to run a task are none.

    Args:
        error: the exception; it can be pickled.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return type(self.error).__name__  # Dask replaces an exception with a long message


def wait_for_any(futures: "Mapping[str, Future[Any]]", timeout_s: float) -> list[str]:
    """Wait until a future is done, but not longer than `timeout_s`; return the keys of all that are done."""
    if not futures:
        time.sleep(timeout_s)
    concurrent.futures.wait(futures.values(), timeout_s, concurrent.futures.FIRST_COMPLETED)
    return [key for key, future in futures.items() if future.done()]


def result_of(future: "Future[Any]", decode: Callable[[Any], Any] = lambda result: result) -> Any:
    """Return the result of a finished task.

    Args:
        future: the future of the task.
        decode: applied to the result, for example `runner.unpickled`.

    Raises:
        LostWorkError: the workers that ran it died.
        NoWorkersError: the scheduler was lost.
        EnvironmentMismatchError: a worker could not unpickle the task, or this process its result.
        Exception: the task's own exception.
    """
    try:
        return decode(_returned(future))
    except TaskError as error:
        raised = error.error
    raise raised  # behind the block, which would become its context


def _returned(future: "Future[Any]") -> Any:
    """Return what a task returned, or raise its `TaskError`, or Dask's failure to run it as an error of pbd."""
    try:
        return future.result()
    except CancelledError as error:
        raise scheduler_lost() from error
    except distributed.KilledWorker as error:
        raise LostWorkError(str(error)) from error
    except runner.PICKLE_ERRORS as error:
        raise runner.other_modules(error) from error


def first_result(futures: "Sequence[Future[Any]]") -> Any:
    """Return the first member's result of a collective's finished tasks.

    Raises:
        LostWorkError: a member was lost, or aborted without an error of its own.
        Exception: a member's own exception, in preference to the aborts that it caused in the others.
    """
    consequences: list[CollectiveAbortedError | CollectiveLostError] = []
    for future in futures:
        try:
            result_of(future)
        except (CollectiveAbortedError, CollectiveLostError) as error:
            consequences.append(error)
    if consequences:
        raise LostWorkError(str(consequences[0])) from consequences[0]
    return result_of(futures[0], runner.unpickled)


def scheduler_lost() -> NoWorkersError:
    """Return the error for a scheduler that no longer answers."""
    return NoWorkersError(
        "the Dask scheduler is gone",
        "Finished blocks are kept: start it and its workers again, and go on with --resume --run-dir DIR.",
    )
