"""Where a worker's work is done: in this process, or in a child whose death costs one attempt and not the run."""

import dataclasses
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pbd import backend, devices
from pbd.config import ExecutionConfig
from pbd.errors import NoWorkersError
from pbd.executors.base import Emit, Kept, TrainGroup, nothing_kept
from pbd.executors.keras_setup import KerasSetup
from pbd.records import BlockResult, TaskGroup
from pbd.scheduling.attempts import MOST_ATTEMPTS, again
from pbd.teamwork import ALONE, Team, WorkersTeam

T = TypeVar("T")
Work = Callable[[Team, Emit], T]
_log = logging.getLogger(__name__)


class LostProcessError(Exception):
    """The process that did the work is gone; how, the message says."""


class Workplace(Protocol):
    """Does one piece of work at a time, on one device."""

    def do(self, work: Work[T], emit: Emit, team: WorkersTeam = ALONE) -> T:
        """Return what a picklable piece of work gives.

        Raises:
            LostProcessError: the process that did it is gone; the next piece of work gets a new one.
            Exception: the work's own.
        """
        ...

    def rest(self) -> None:
        """Let go of what it holds, unless something is being done there; the next piece of work takes it again."""
        ...

    def close(self) -> None:
        """Let go of what it holds; whatever is being done there ends."""
        ...


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
    from pbd.executors.child import Child

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


@dataclass(frozen=True)
class _Train:
    train_group: TrainGroup
    group: TaskGroup

    def __call__(self, team: Team, emit: Emit) -> list[BlockResult]:
        return self.train_group(self.group, emit)


@dataclass(frozen=True)
class _Call(Generic[T]):
    function: Callable[[], T]

    def __call__(self, team: Team, emit: Emit) -> T:
        return self.function()


def training_in(workplace: Workplace, train_group: TrainGroup) -> TrainGroup:
    """Return what trains a group in a workplace, and tries again, less at a time, what its process was lost with."""

    def train(group: TaskGroup, emit: Emit) -> list[BlockResult]:
        results, left = list[BlockResult](), [group]
        while left:
            part = left.pop(0)
            try:
                done = workplace.do(_Train(train_group, part), emit)
            except LostProcessError as error:
                _log.warning("%s, at attempt %d of %d at %s.", error, part.attempt, MOST_ATTEMPTS, _names(part))
                left[:0] = again(part)
                done = given_up(part, str(error))
            results += [dataclasses.replace(result, attempts=part.attempt) for result in done]
        return results

    return train


def given_up(group: TaskGroup, why: str) -> list[BlockResult]:
    """Return the failed results of a group that was lost, none where it is to be tried again."""
    if again(group):
        return []
    message = f"{why}, at each of {group.attempt} attempts."
    return [BlockResult(name, "failed", block="", error=message) for name in group.layer_names]


def call_in(workplace: Workplace, function: Callable[[], T]) -> T:
    """Return what a picklable function gives in a workplace.

    Raises:
        NoWorkersError: its process was lost at every attempt.
    """
    return insist(lambda: workplace.do(_Call(function), lambda event: None))


def insist(attempt: Callable[[], T], *losses: type[Exception], kept: Kept = nothing_kept) -> T:
    """Return what an attempt gives that does not lose a process, or anything else that it may lose.

    Args:
        attempt: begins where the one before it left something to go on from.
        kept: says what that is; those that left something new are not counted.

    Raises:
        NoWorkersError: every one of them did.
    """
    lost, before, left = None, kept(), MOST_ATTEMPTS
    while left:
        try:
            return attempt()
        except (LostProcessError, *losses) as error:
            lost = error
            _log.warning("%s.", error)
        now = kept()
        before, left = now, (left if now == before else MOST_ATTEMPTS) - 1
    raise NoWorkersError(
        f"{lost}, at each of {MOST_ATTEMPTS} attempts. What was finished is kept: go on with --resume --run-dir DIR."
    )


def _names(group: TaskGroup) -> str:
    names = group.layer_names
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
