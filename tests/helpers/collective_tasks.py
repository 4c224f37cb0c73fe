"""Work for collectives in tests: sums, failures, aborts and killed processes; no TensorFlow."""

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
from pbd.system import launcher


def sums(collective: Collective, progress: ProgressCallback) -> tuple[int, list[float]]:
    """Return the size of the collective, and one element of each of two sums."""
    small = collective.all_reduce_sum(np.full((2, 1), 10.0**collective.index))
    large = collective.all_reduce_sum(np.full(300_000, collective.index + 1, np.float32))
    assert (small.shape, large.dtype, len(set(large))) == ((2, 1), np.float32, 1)
    return collective.size, [float(small[1, 0]), float(large[-1])]


def slow_sum(collective: Collective, progress: ProgressCallback) -> float:
    if collective.index == 1:
        time.sleep(1.5)
    return float(collective.all_reduce_sum(np.ones(1))[0])


def aborts_once(collective: Collective, progress: ProgressCallback) -> list[str]:
    """Sum twice; the second member aborts the first sum."""
    outcomes = []
    for attempt in range(2):
        try:
            if attempt == 0 and collective.index == 1:
                raise MemoryError("injected")
            collective.all_reduce_sum(np.ones(3))
            outcomes.append("summed")
        except CollectiveAbortedError:
            outcomes.append("aborted")
        except MemoryError:
            collective.abort()
            outcomes.append("aborted")
    return outcomes


def raises_in_the_second(collective: Collective, progress: ProgressCallback) -> None:
    """Raise an error of its own in the second member, while the first one retries."""
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 1:
        raise MissingInputError("every worker must see the run directory.")
    for _ in range(3):
        try:
            collective.all_reduce_sum(np.ones(1))
        except CollectiveAbortedError:
            continue


def raises_after_the_last_sum(collective: Collective, progress: ProgressCallback) -> None:
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 0:
        raise MissingInputError("no space left.")


@dataclass(frozen=True)
class Unreadable:
    """Cannot be unpickled by one of the workers."""

    folder: Path

    def __call__(self, collective: Collective, progress: ProgressCallback) -> float:
        return float(collective.all_reduce_sum(np.ones(1))[0])

    def __reduce__(self) -> tuple[Callable[[Path], "Unreadable"], tuple[Path]]:
        return unpickle_once, (self.folder,)


def unpickle_once(folder: Path) -> Unreadable:
    try:
        (folder / "read").touch(exist_ok=False)
    except FileExistsError:
        return Unreadable(folder)
    raise MissingInputError("nothing to read.")


@dataclass(frozen=True)
class AbortsWhileAnotherDies:
    """At the first attempt, the first member aborts while the second one's process is killed."""

    folder: Path

    def __call__(self, collective: Collective, progress: ProgressCallback) -> int:
        mark = self.folder / f"failed {collective.index}"
        if collective.index < 2 and not mark.exists():
            mark.touch()
            if collective.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            collective.abort()
            return len(collective.all_reduce_sum(np.ones(3)))
        return len(collective.all_reduce_sum(np.ones(7)))


def kills_the_second(collective: Collective, progress: ProgressCallback) -> None:
    collective.all_reduce_sum(np.ones(1))
    if collective.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    collective.all_reduce_sum(np.ones(1))


@dataclass(frozen=True)
class KilledOnce:
    """At the first attempt, the process of the member with this index is killed."""

    folder: Path
    index: int

    def __call__(self, collective: Collective, progress: ProgressCallback) -> tuple[int, float]:
        collective.all_reduce_sum(np.ones(1))
        mark = self.folder / "died"
        if collective.index == self.index and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return collective.size, float(collective.all_reduce_sum(np.ones(1))[0])


@dataclass(frozen=True)
class KilledOften:
    """At the first attempts, the process of the member with this index is killed."""

    folder: Path
    index: int
    times: int

    def __call__(self, collective: Collective, progress: ProgressCallback) -> float:
        collective.all_reduce_sum(np.ones(1))
        if collective.index == self.index and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(collective.all_reduce_sum(np.ones(1))[0])


class NewInRank0:
    """The token of a checkpoint that rank 0 sees to be new each time, and other ranks do not."""

    calls = 0

    def __call__(self) -> int:
        self.calls += launcher.rank() == 0
        return self.calls
