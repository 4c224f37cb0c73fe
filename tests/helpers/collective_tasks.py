"""What collectives are given to do in tests: add up, fail, give up and die, on demand; no TensorFlow."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pbd.collective import Collective, CollectiveAbortedError
from pbd.errors import MissingInputError
from pbd.records import ProgressCallback


def sums(collective: Collective, emit: ProgressCallback) -> tuple[int, list[float]]:
    """Return the size of the collective, and what it adds up to."""
    small = collective.all_reduce_sum(np.full((2, 1), 10.0**collective.index))
    large = collective.all_reduce_sum(np.full(300_000, collective.index + 1, np.float32))
    assert (small.shape, large.dtype, len(set(large))) == ((2, 1), np.float32, 1)
    return collective.size, [float(small[1, 0]), float(large[-1])]


def slow_sum(collective: Collective, emit: ProgressCallback) -> float:
    if collective.index == 1:
        time.sleep(1.5)
    return float(collective.all_reduce_sum(np.ones(1))[0])


def fails_in_the_second(collective: Collective, emit: ProgressCallback) -> list[str]:
    """The second cannot do the first of two things, and says so; both are tried by all."""
    done = []
    for attempt in range(2):
        try:
            if attempt == 0 and collective.index == 1:
                raise MemoryError("injected")
            collective.all_reduce_sum(np.ones(3))
            done.append("together")
        except CollectiveAbortedError:
            done.append("given up")
        except MemoryError:
            collective.abort()
            done.append("given up")
    return done


def leaves(collective: Collective, emit: ProgressCallback) -> None:
    """The second leaves with an error of its own, the first tries again and again."""
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 1:
        raise MissingInputError("every worker must see the run directory.")
    for _ in range(3):
        try:
            collective.all_reduce_sum(np.ones(1))
        except CollectiveAbortedError:
            continue


def leaves_after_the_last_sum(collective: Collective, emit: ProgressCallback) -> None:
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 0:
        raise MissingInputError("no space left.")


@dataclass(frozen=True)
class Unreadable:
    """Cannot be unpickled by one of the workers."""

    folder: Path

    def __call__(self, collective: Collective, emit: ProgressCallback) -> float:
        return float(collective.all_reduce_sum(np.ones(1))[0])

    def __reduce__(self) -> tuple[Callable[[Path], "Unreadable"], tuple[Path]]:
        return read, (self.folder,)


def read(folder: Path) -> Unreadable:
    try:
        (folder / "read").touch(exist_ok=False)
    except FileExistsError:
        return Unreadable(folder)
    raise MissingInputError("nothing to read.")


@dataclass(frozen=True)
class GivesUpWhileAnotherDies:
    """The first time, one cannot go on, and says so just as another one's process is lost."""

    folder: Path

    def __call__(self, collective: Collective, emit: ProgressCallback) -> int:
        mark = self.folder / f"failed {collective.index}"
        if collective.index < 2 and not mark.exists():
            mark.touch()
            if collective.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            collective.abort()
            return len(collective.all_reduce_sum(np.ones(3)))
        return len(collective.all_reduce_sum(np.ones(7)))


def dies_in_the_second(collective: Collective, emit: ProgressCallback) -> None:
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    collective.all_reduce_sum(np.ones(1))


@dataclass(frozen=True)
class Mortal:
    """The worker at this place in the collective is killed, the first time."""

    folder: Path
    place: int

    def __call__(self, collective: Collective, emit: ProgressCallback) -> tuple[int, float]:
        collective.all_reduce_sum(np.ones(1))
        mark = self.folder / "died"
        if collective.index == self.place and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return collective.size, float(collective.all_reduce_sum(np.ones(1))[0])
