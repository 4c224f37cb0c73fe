"""Retries of work whose training process was lost."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from pbd.collective import Collective
from pbd.errors import NoWorkersError
from pbd.executors.base import CheckpointToken, TrainGroup, no_checkpoint
from pbd.executors.isolation.base import LostProcessError, T, TaskRunner, Work
from pbd.records import BlockResult, ProgressCallback, TaskGroup, no_progress
from pbd.scheduling.retry import MOST_ATTEMPTS, split_for_retry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Train:
    train_group: TrainGroup
    group: TaskGroup

    def __call__(self, collective: Collective, progress: ProgressCallback) -> list[BlockResult]:
        return self.train_group(self.group, progress)


@dataclass(frozen=True)
class _Call(Generic[T]):
    function: Callable[[], T]

    def __call__(self, collective: Collective, progress: ProgressCallback) -> T:
        return self.function()


def retrying(runner: TaskRunner, train_group: TrainGroup) -> TrainGroup:
    """Return a function that trains a group in a runner, and retries smaller groups if the process is lost."""

    def train(group: TaskGroup, progress: ProgressCallback) -> list[BlockResult]:
        results, queue = list[BlockResult](), [group]
        while queue:
            part = queue.pop(0)
            try:
                part_results = runner.run(_Train(train_group, part), progress)
            except LostProcessError as error:
                _log.warning("%s, at attempt %d of %d at %s.", error, part.attempt, MOST_ATTEMPTS, _names(part))
                queue[:0] = split_for_retry(part)
                part_results = failed_results(part, str(error))
            results += [dataclasses.replace(result, attempts=part.attempt) for result in part_results]
        return results

    return train


def failed_results(group: TaskGroup, reason: str) -> list[BlockResult]:
    """Return the failed results of a group after its last attempt; empty if the group is retried."""
    if split_for_retry(group):
        return []
    message = f"{reason}, at each of {group.attempt} attempts."
    failed = functools.partial(BlockResult, status="failed", error=message, attempts=group.attempt)
    return [failed(task.layer.name, design=task.design) for task in group.tasks]


def call_in(runner: TaskRunner, function: Callable[[], T]) -> T:
    """Call a picklable function in a runner and return its result.

    Raises:
        NoWorkersError: the training process was lost at every attempt.
    """
    return run_in(runner, _Call(function), no_progress)


def run_in(runner: TaskRunner, work: Work[T], progress: ProgressCallback) -> T:
    """Call work in a runner, as a collective of one member, and return its result.

    Raises:
        NoWorkersError: the training process was lost at every attempt.
    """
    return retry_lost(lambda: runner.run(work, progress))


def retry_lost(attempt: Callable[[], T], *losses: type[Exception], checkpoint: CheckpointToken = no_checkpoint) -> T:
    """Call `attempt` until it succeeds, at most `MOST_ATTEMPTS` times; retry only if the training process is lost.

    Args:
        attempt: the work; it resumes at the last checkpoint, if it writes any.
        *losses: further exceptions that count as a loss.
        checkpoint: returns a token that changes whenever a checkpoint is written; an attempt that changed it resets
            the count of attempts.

    Raises:
        NoWorkersError: the process was lost at every attempt.
    """
    lost: tuple[type[Exception], ...] = (LostProcessError, *losses)
    last_error, last_token, attempts_left = None, checkpoint(), MOST_ATTEMPTS
    while attempts_left:
        try:
            return attempt()
        except lost as error:
            last_error = error
            _log.warning("%s.", error)
        token = checkpoint()
        # The attempt that wrote a checkpoint is itself the first of the new count.
        attempts_left = (attempts_left if token == last_token else MOST_ATTEMPTS) - 1
        last_token = token
    raise lost_at_every_attempt(str(last_error))


def lost_at_every_attempt(reason: str) -> NoWorkersError:
    """Return the error for work whose training process or worker was lost at every attempt."""
    remedy = "Finished work is kept: go on with --resume --run-dir DIR."
    return NoWorkersError(f"{reason}, at each of {MOST_ATTEMPTS} attempts", remedy)


def _names(group: TaskGroup) -> str:
    names = group.layer_names
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
