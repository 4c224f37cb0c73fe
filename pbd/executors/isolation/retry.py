"""Retries of work whose process was lost."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from pbd.collective import Collective
from pbd.errors import NoWorkersError
from pbd.executors.base import CheckpointToken, Emit, TrainGroup, no_checkpoint
from pbd.executors.isolation.base import LostProcessError, T, TaskRunner
from pbd.records import BlockResult, TaskGroup
from pbd.scheduling.retry import MOST_ATTEMPTS, again

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Train:
    train_group: TrainGroup
    group: TaskGroup

    def __call__(self, collective: Collective, emit: Emit) -> list[BlockResult]:
        return self.train_group(self.group, emit)


@dataclass(frozen=True)
class _Call(Generic[T]):
    function: Callable[[], T]

    def __call__(self, collective: Collective, emit: Emit) -> T:
        return self.function()


def training_in(runner: TaskRunner, train_group: TrainGroup) -> TrainGroup:
    """Return what trains a group in a runner, and tries again, less at a time, what its process was lost with."""

    def train(group: TaskGroup, emit: Emit) -> list[BlockResult]:
        results, left = list[BlockResult](), [group]
        while left:
            part = left.pop(0)
            try:
                done = runner.run(_Train(train_group, part), emit)
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
    return [BlockResult(task.layer.name, "failed", task.design, error=message) for task in group.tasks]


def call_in(runner: TaskRunner, function: Callable[[], T]) -> T:
    """Return what a picklable function gives in a runner.

    Raises:
        NoWorkersError: its process was lost at every attempt.
    """
    return retry_lost(lambda: runner.run(_Call(function), lambda event: None))


def retry_lost(attempt: Callable[[], T], *losses: type[Exception], checkpoint: CheckpointToken = no_checkpoint) -> T:
    """Return what an attempt gives that does not lose a process, or anything else that it may lose.

    Args:
        attempt: begins where the one before it left something to go on from.
        checkpoint: says what that is; those that left something new are not counted.

    Raises:
        NoWorkersError: every one of them did.
    """
    lost, before, left = None, checkpoint(), MOST_ATTEMPTS
    while left:
        try:
            return attempt()
        except (LostProcessError, *losses) as error:
            lost = error
            _log.warning("%s.", error)
        now = checkpoint()
        before, left = now, (left if now == before else MOST_ATTEMPTS) - 1
    raise NoWorkersError(
        f"{lost}, at each of {MOST_ATTEMPTS} attempts. What was finished is kept: go on with --resume --run-dir DIR."
    )


def _names(group: TaskGroup) -> str:
    names = group.layer_names
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
