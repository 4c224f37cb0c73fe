"""What teams are given to do in tests: add up, fail, give up and die, on demand; no TensorFlow."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pbd.collective import BrokenTeamError, Team
from pbd.errors import MissingInputError
from pbd.executors.base import Emit


def sums(team: Team, emit: Emit) -> tuple[int, list[float]]:
    """Return the size of the team, and what it adds up to."""
    small = team.add_up(np.full((2, 1), 10.0**team.index))
    large = team.add_up(np.full(300_000, team.index + 1, np.float32))
    assert (small.shape, large.dtype, len(set(large))) == ((2, 1), np.float32, 1)
    return team.size, [float(small[1, 0]), float(large[-1])]


def slow_sum(team: Team, emit: Emit) -> float:
    if team.index == 1:
        time.sleep(1.5)
    return float(team.add_up(np.ones(1))[0])


def fails_in_the_second(team: Team, emit: Emit) -> list[str]:
    """The second cannot do the first of two things, and says so; both are tried by all."""
    done = []
    for attempt in range(2):
        try:
            if attempt == 0 and team.index == 1:
                raise MemoryError("injected")
            team.add_up(np.ones(3))
            done.append("together")
        except BrokenTeamError:
            done.append("given up")
        except MemoryError:
            team.give_up()
            done.append("given up")
    return done


def leaves(team: Team, emit: Emit) -> None:
    """The second leaves with an error of its own, the first tries again and again."""
    team.add_up(np.ones(1))
    if team.index == 1:
        raise MissingInputError("every worker must see the run directory.")
    for _ in range(3):
        try:
            team.add_up(np.ones(1))
        except BrokenTeamError:
            continue


def leaves_after_the_last_sum(team: Team, emit: Emit) -> None:
    team.add_up(np.ones(1))
    if team.index == 0:
        raise MissingInputError("no space left.")


@dataclass(frozen=True)
class Unreadable:
    """Cannot be unpickled by one of the workers."""

    folder: Path

    def __call__(self, team: Team, emit: Emit) -> float:
        return float(team.add_up(np.ones(1))[0])

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

    def __call__(self, team: Team, emit: Emit) -> int:
        mark = self.folder / f"failed {team.index}"
        if team.index < 2 and not mark.exists():
            mark.touch()
            if team.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            team.give_up()
            return len(team.add_up(np.ones(3)))
        return len(team.add_up(np.ones(7)))


def dies_in_the_second(team: Team, emit: Emit) -> None:
    team.add_up(np.ones(1))
    if team.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    team.add_up(np.ones(1))


@dataclass(frozen=True)
class Mortal:
    """The worker at this place in the team is killed, the first time."""

    folder: Path
    place: int

    def __call__(self, team: Team, emit: Emit) -> tuple[int, float]:
        team.add_up(np.ones(1))
        mark = self.folder / "died"
        if team.index == self.place and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return team.size, float(team.add_up(np.ones(1))[0])
