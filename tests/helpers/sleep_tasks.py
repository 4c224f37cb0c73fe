"""Groups that only sleep, count and fail on demand: executors are tested with them, without a teacher."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pbd.executors.base import Executor
from pbd.records import BlockResult, BlockTask, Progress, ProgressCallback, TaskGroup
from pbd.scheduling import schedulers
from pbd.scheduling.cost_model import TaskCosts
from tests.helpers.fakes import make_task

LONGEST_WAIT_S = 200.0


@dataclass(frozen=True)
class Sleeper:
    """Trains a group by sleeping, and leaves a file for every time it begins one."""

    folder: Path
    seconds: dict[str, float]
    """By layer name."""
    kills: dict[str, int] = field(default_factory=dict)
    """By layer name: how often its worker is killed under it."""
    waits_for: dict[str, int] = field(default_factory=dict)
    """By layer name: how many layers must have begun before it ends; it waits for `LONGEST_WAIT_S` at most."""
    error: Exception | None = None
    """Raised instead of sleeping."""

    def __call__(self, group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
        for name in group.layer_names:
            began = len(self.begun(name))
            (self.folder / f"{name}.{began}").touch()
            if began < self.kills.get(name, 0):
                os.kill(os.getpid(), signal.SIGKILL)
        if self.error is not None:
            raise self.error
        emit(Progress(0, group.layer_names[0], 1, 1))
        time.sleep(sum(self.seconds[name] for name in group.layer_names))
        self._wait(max(self.waits_for.get(name, 0) for name in group.layer_names))
        return [BlockResult(name, "trained", "two_layer", nmse=0.5) for name in group.layer_names]

    def _wait(self, layers: int) -> None:
        latest = time.monotonic() + LONGEST_WAIT_S
        while len(self.begun("*")) < layers and time.monotonic() < latest:
            time.sleep(0.05)

    def begun(self, name: str) -> list[Path]:
        """Return a file for each time that this layer was begun."""
        return list(self.folder.glob(f"{name}.*"))


def sleeping(seconds: Sequence[float]) -> tuple[list[BlockTask], TaskCosts]:
    """Return a task for each duration, and costs that predict it; none share a prefix."""
    tasks = [make_task(at) for at in range(len(seconds))]
    keys = [task.key for task in tasks]
    costs = TaskCosts(dict.fromkeys(keys, 0.0), dict(zip(keys, seconds, strict=True)), False, "test")
    return tasks, costs


def train(
    executor: Executor,
    sleeper: Sleeper,
    scheduler: str,
    seconds: list[float],
    events: list[Progress] | None = None,
    workers: int = 3,
) -> dict[str, BlockResult]:
    """Let an executor run a task for each predicted duration; return the results by layer."""
    tasks, costs = sleeping(seconds)
    assignment = schedulers.SCHEDULERS[scheduler](tasks, costs, workers)
    emit = events.append if events is not None else lambda _: None
    results = list(executor.run(sleeper, assignment, emit))
    assert sorted(result.layer for result in results) == sorted(task.layer.name for task in tasks)
    return {result.layer: result for result in results}


def durations(seconds: list[float]) -> dict[str, float]:
    """Return the durations of the tasks that `sleeping` makes, by layer."""
    return {f"conv{at}": duration for at, duration in enumerate(seconds)}
