"""Where a worker's work is done: in this process, or in a child whose death costs one attempt and not the run."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from pbd.collective import ALONE, WorkersTeam
from pbd.config import ExecutionConfig
from pbd.executors.base import Emit
from pbd.executors.isolation.base import T, Work, Workplace
from pbd.system import backend, devices
from pbd.system.keras_state import KerasSetup


class Here:
    """This process, once it has taken its share of the host."""

    def __init__(self, share: devices.Share) -> None:
        self._share = share

    def do(self, work: Work[T], emit: Emit, team: WorkersTeam = ALONE) -> T:
        self._share.claim()
        backend.load()
        return work(team, emit)

    def rest(self) -> None:
        """There is nothing to let go of."""

    def close(self) -> None:
        """There is nothing to let go of."""


def open_workplace(config: ExecutionConfig, share: devices.Share, keras: KerasSetup | None = None) -> Workplace:
    """Return where a worker with this share of its host works, as the settings want it (see `child.Child`)."""
    if not config.isolate:
        return Here(share)
    from pbd.executors.isolation.child import Child

    return Child(share, config.stall_limit, keras)


@dataclass(frozen=True)
class Packed(Generic[T]):
    """A function in a form that is only unpacked where it is called: what it needs is not loaded on the way there."""

    pickled: bytes

    @classmethod
    def of(cls, function: Callable[..., T]) -> "Packed[T]":
        return function if isinstance(function, cls) else cls(pickle.dumps(function))

    def __call__(self, *arguments: Any) -> T:
        return pickle.loads(self.pickled)(*arguments)
