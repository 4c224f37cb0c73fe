"""Where a worker runs its work: the protocol, and the error that says that its process was lost."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from pbd.collective import SINGLE, Collective, WorkerCollective
from pbd.executors.base import Emit

T = TypeVar("T")


Work = Callable[[Collective, Emit], T]


class LostProcessError(Exception):
    """The process that did the work is gone; how, the message says."""


class TaskRunner(Protocol):
    """Does one piece of work at a time, on one device."""

    def run(self, work: Work[T], emit: Emit, collective: WorkerCollective = SINGLE) -> T:
        """Return what a picklable piece of work gives.

        Raises:
            LostProcessError: the process that did it is gone; the next piece of work gets a new one.
            Exception: the work's own.
        """
        ...

    def release(self) -> None:
        """Let go of what it holds, unless something is being done there; the next piece of work takes it again."""
        ...

    def close(self) -> None:
        """Let go of what it holds; whatever is being done there ends."""
        ...
