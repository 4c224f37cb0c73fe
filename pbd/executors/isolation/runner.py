"""The choice of a task runner: this process, or a child process whose crash costs one attempt and not the run."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import cloudpickle

from pbd.collective import SINGLE, WorkerCollective
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError
from pbd.executors.isolation.base import T, TaskRunner, Work
from pbd.executors.isolation.child import Child
from pbd.records import ProgressCallback
from pbd.system import devices, process, random_state
from pbd.system.keras_state import KerasSetup

PICKLE_ERRORS = (ImportError, AttributeError, pickle.UnpicklingError)
"""Raised by `pickle.loads` if a module or a name in it is absent."""


class InProcessRunner:
    """Executes work in this process, which has its share of the host only meanwhile."""

    def __init__(self, share: devices.Share) -> None:
        self._share = share

    def run(self, work: Work[T], progress: ProgressCallback, collective: WorkerCollective = SINGLE) -> T:
        with process.prepared(self._share):
            return work(collective, progress)

    def release(self) -> bool:
        """Return True: this process holds nothing."""
        return True

    def close(self) -> None:
        """Do nothing: this process holds nothing."""


class WorkerRunner:
    """Executes work in this process, which is that of a worker: it has its share of the host already."""

    def run(self, work: Work[T], progress: ProgressCallback, collective: WorkerCollective = SINGLE) -> T:
        with random_state.preserved():
            return work(collective, progress)

    def release(self) -> bool:
        """Return True: this runner holds nothing."""
        return True

    def close(self) -> None:
        """Do nothing: this runner holds nothing."""


def open_runner(config: ExecutionConfig, share: devices.Share, keras: KerasSetup | None = None) -> TaskRunner:
    """Return the configured runner, with this share of its host.

    Args:
        config: whether training is isolated, and the stall limit.
        share: the share of the host.
        keras: the state of Keras in a child process; by default that of this process.

    Raises:
        EnvironmentMismatchError: there are GPUs, but fewer than workers.
    """
    return Child(share, config.stall_limit, keras) if config.isolate else InProcessRunner(share)


@dataclass(frozen=True)
class Pickled(Generic[T]):
    """A pickled function, unpickled only when it is called: processes that pass it on need not import its modules."""

    pickled: bytes

    @classmethod
    def of(cls, function: Callable[..., T]) -> "Pickled[T]":
        return function if isinstance(function, cls) else cls(cloudpickle.dumps(function))

    def __call__(self, *arguments: Any) -> T:
        return unpickled(self.pickled)(*arguments)


def unpickled(pickled: bytes) -> Any:
    """Return what another process of the run has pickled.

    Raises:
        EnvironmentMismatchError: it needs what this process cannot import.
    """
    try:
        return pickle.loads(pickled)
    except PICKLE_ERRORS as error:
        raise other_modules(error) from error


def other_modules(error: Exception) -> EnvironmentMismatchError:
    """Return the error for one of `PICKLE_ERRORS`, raised because two processes have different modules."""
    reason = " ".join(str(error).split())
    return EnvironmentMismatchError(
        f"every worker must have this pbd. Received: {type(error).__name__}: {reason}. "
        "Start the workers where python -m pbd.run works."
    )
