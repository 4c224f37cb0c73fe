"""Where a worker's work is done: in this process, or in a child whose death costs one attempt and not the run."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from pbd.collective import SINGLE, WorkerCollective
from pbd.config import ExecutionConfig
from pbd.executors.base import Emit
from pbd.executors.isolation.base import T, TaskRunner, Work
from pbd.system import backend, devices
from pbd.system.keras_state import KerasSetup


class InProcessRunner:
    """This process, once it has taken its share of the host."""

    def __init__(self, share: devices.Share) -> None:
        self._share = share

    def run(self, work: Work[T], emit: Emit, collective: WorkerCollective = SINGLE) -> T:
        self._share.claim()
        backend.load()
        return work(collective, emit)

    def release(self) -> None:
        """There is nothing to let go of."""

    def close(self) -> None:
        """There is nothing to let go of."""


def open_runner(config: ExecutionConfig, share: devices.Share, keras: KerasSetup | None = None) -> TaskRunner:
    """Return where a worker with this share of its host works, as the settings want it (see `child.Child`)."""
    if not config.isolate:
        return InProcessRunner(share)
    from pbd.executors.isolation.child import Child

    return Child(share, config.stall_limit, keras)


@dataclass(frozen=True)
class Pickled(Generic[T]):
    """A function in a form that is only unpacked where it is called: what it needs is not loaded on the way there."""

    pickled: bytes

    @classmethod
    def of(cls, function: Callable[..., T]) -> "Pickled[T]":
        return function if isinstance(function, cls) else cls(pickle.dumps(function))

    def __call__(self, *arguments: Any) -> T:
        return pickle.loads(self.pickled)(*arguments)
