"""Workers that do one piece of work together: each on its part of the data, all with the same sums."""

from typing import Protocol

import numpy as np


class BrokenTeamError(Exception):
    """Another worker of the team gave up what they were at; they can try something else together."""


class LostTeamError(Exception):
    """Another worker of the team was lost: there is no team any more."""


class Team(Protocol):
    """What a worker knows of those it works with. Everyone must ask for the same sums, in the same order."""

    index: int
    size: int

    def add_up(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of everyone's values, the same to the last bit for all.

        Args:
            values: of one shape and type in the whole team.

        Raises:
            BrokenTeamError: a worker gave up instead.
            LostTeamError: a worker was lost.
        """
        ...

    def give_up(self) -> None:
        """In place of the next sum: let it fail for the others, since this worker cannot go on."""
        ...


class WorkersTeam(Team, Protocol):
    """The team of a worker whose part is done in a process that may be lost."""

    def leave(self) -> None:
        """In place of the next sum: let the others know that there is no team any more, since this worker was lost."""
        ...


class Alone:
    """The team of one."""

    index = 0
    size = 1

    def add_up(self, values: np.ndarray) -> np.ndarray:
        """Return the values."""
        return values

    def give_up(self) -> None:
        """There is nobody else to tell."""

    def leave(self) -> None:
        """There is nobody else to tell."""


ALONE = Alone()


def add_up_all(team: Team, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the sums of several arrays of one type, in one exchange."""
    if team.size == 1:
        return arrays
    flat = team.add_up(np.concatenate([array.reshape(-1) for array in arrays]))
    ends = np.cumsum([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(np.split(flat, ends[:-1]), arrays, strict=True)]
