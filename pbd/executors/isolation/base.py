"""The task runner protocol, and the error raised if the training process is lost."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from pbd.collective import SINGLE, Collective, WorkerCollective
from pbd.records import ProgressCallback

T = TypeVar("T")
Work = Callable[[Collective, ProgressCallback], T]
"""A function of the worker's collective and a progress callback; must be picklable by cloudpickle."""


class LostProcessError(Exception):
    """The training process crashed, was killed or hung; the message says which."""


class TaskRunner(Protocol):
    """Executes work on one device, one function at a time."""

    def run(self, work: Work[T], progress: ProgressCallback, collective: WorkerCollective = SINGLE) -> T:
        """Call `work` and return its result.

        Args:
            work: the function to call.
            progress: receives the progress of the work.
            collective: the workers that call the same function at the same time.

        Raises:
            LostProcessError: the training process was lost; the next call starts a new one.
            Exception: the work's own exception.
        """
        ...

    def release(self) -> bool:
        """Free the device and memory unless work is running; the next call of `run` allocates them again.

        Returns:
            Whether they are free.
        """
        ...

    def close(self) -> None:
        """Free the device and memory; work that another thread runs is killed, so that its `run` raises an error."""
        ...
