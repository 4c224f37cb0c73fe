"""Commands from rank 0 to the other ranks, and their replies."""

from dataclasses import dataclass
from typing import Any

from pbd.executors.base import CheckpointToken
from pbd.executors.isolation import runner
from pbd.records import BlockResult, TaskGroup


@dataclass(frozen=True)
class Train:
    """Command: train these groups, then groups of the pool as drawn from the counter."""

    train_group: runner.Pickled[list[BlockResult]]
    queue: tuple[TaskGroup, ...]
    pool: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class RunEach:
    """Command: call those of these functions that the rank draws from the counter."""

    functions: tuple[runner.Pickled[Any], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of the functions that one rank drew."""

    results: dict[int, Any]
    """The results, by the position of the function."""
    error: Exception | None = None
    """The error of its last function."""


@dataclass(frozen=True)
class RunCollective:
    """Command: call this function at the same time as all other ranks."""

    function: runner.Pickled[Any]
    max_workers: int
    checkpoint: CheckpointToken


@dataclass(frozen=True)
class ReadEnergy:
    """Command: send the energy reading of this rank; only local rank 0 has a meter."""


@dataclass(frozen=True)
class Stop:
    """Command: leave, with the result of the run or with the error that ended it."""

    result: Any = None
    error: Exception | None = None
