"""The network and the context of a step in a real recipe, and workers in this process for it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

import pbd
from pbd.compression.context import Context
from pbd.compression.step import Step, StepResult
from pbd.pipeline.remote_tasks import TrainGroupTask
from tests.helpers.thread_collective import run_threads


class Stop(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class _Probe:
    """A step that hands out its network and its context."""

    seen: list[tuple[keras.Model, Context]]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        self.seen.append((model, context))
        raise Stop


def network_and_context(model: keras.Model, data: pbd.Data, run_dir: Path) -> tuple[keras.Model, Context]:
    """Return what the first step of a recipe gets; its executor has ended."""
    seen: list[tuple[keras.Model, Context]] = []
    step: Step = _Probe(seen)
    with contextlib.suppress(Stop):
        pbd.compress(model, data, [step], executor="serial", isolate=False, run_dir=str(run_dir))
    return seen[0]


class Threads:
    """Workers that are threads of this process; they note kinds of tasks, and the groups of blocks that they train."""

    def __init__(self, count: int) -> None:
        self.collective_size = count
        self.kinds: set[str] = set()
        self.groups: list[list[str]] = []

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def run_collective(self, function: Any, progress: Any, max_workers: int, checkpoint: Any = None) -> Any:
        self.kinds.add(type(function).__name__)
        if isinstance(function, TrainGroupTask):
            self.groups.append(list(function.group.layer_names))
        return run_threads(min(self.collective_size, max_workers), lambda member: function(member, progress))[0]
