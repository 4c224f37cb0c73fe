"""Where fine-tuning stands, kept after every epoch: what goes on from there ends as if nothing had interrupted it."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pbd.collective import Collective
from pbd.learning.metrics import Metrics
from pbd.run_dir.archive import pack, unpack
from pbd.run_dir.journal import Journal

_ATTEMPT = 1_000_000  # more than there are epochs
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """What came of fine-tuning a student."""

    best: Metrics
    """Of the weights that it was left with."""
    history: tuple[dict[str, float], ...] = ()
    """Epoch, loss, marks and the learning rate it began with, a row per epoch that was not taken back."""
    events: tuple[str, ...] = ()
    """A line for each time that training diverged and was stepped back."""


@dataclass(frozen=True)
class Attempt:
    """A go at the epochs that are left, which ends with the last of them or with one that diverges."""

    before: Tuning
    """What came of the attempts before it."""
    rate: float
    """The learning rate that it begins with."""
    number: int = 0

    @property
    def epoch(self) -> int:
        """The epoch that it begins with, from 0."""
        return len(self.before.history)


@dataclass(frozen=True)
class FineTuneState:
    """The end of an epoch of an attempt."""

    attempt: Attempt
    best: Metrics
    rows: tuple[dict[str, float], ...]
    """Of the attempt, one per epoch."""
    best_weights: Sequence[np.ndarray] = field(compare=False)
    variables: Sequence[np.ndarray] = field(compare=False)
    """The student's, as they are now: weights, statistics, the state of its random generators."""
    optimizer: Sequence[np.ndarray] = field(compare=False)
    """Its variables."""


class Checkpoint(Protocol):
    """Remembers a place."""

    def read(self) -> FineTuneState | None:
        """Return the place that was kept last, the same for a whole collective; `None` where there is none."""
        ...

    def write(self, place: FineTuneState) -> None:
        """Keep a place instead of the one before it."""
        ...


class NoCheckpoint:
    """Remembers nothing."""

    def read(self) -> FineTuneState | None:
        return None

    def write(self, place: FineTuneState) -> None:
        """Let it go."""


class CheckpointFile:
    """Keeps the place in a file of the run directory, which of a collective the first writes and all read."""

    def __init__(self, journal: Journal, name: str, collective: Collective) -> None:
        self._journal, self._name, self._team = journal, name, collective

    def read(self) -> FineTuneState | None:
        place = self._load()
        number = 0 if place is None else 1 + place.attempt.number * _ATTEMPT + place.attempt.epoch + len(place.rows)
        total, squares = self._team.all_reduce_sum(np.array([number, number**2], np.float64))
        return place if squares * self._team.size == total**2 else None  # they are all equal

    def write(self, place: FineTuneState) -> None:
        if self._team.index == 0:
            try:
                self._journal.write_bytes(self._name, _pack(place))
            except OSError as error:
                _log.warning("the epoch cannot be kept for --resume: %s", error)

    def _load(self) -> FineTuneState | None:
        path = self._journal.file(self._name)
        if not path.exists():
            return None
        try:
            return _unpack(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:  # the last two: another pbd's
            _log.warning("%s is damaged (%s): fine-tuning begins anew.", path, error)
            return None


_LISTS = ("best_weights", "variables", "optimizer")


def _pack(place: FineTuneState) -> bytes:
    said = {"attempt": dataclasses.asdict(place.attempt), "best": vars(place.best), "rows": place.rows}
    lists = [getattr(place, name) for name in _LISTS]
    return pack(said | {"lengths": [len(each) for each in lists]}, [array for each in lists for array in each])


def _unpack(data: bytes) -> FineTuneState:
    said, arrays = unpack(data)
    attempt: dict[str, Any] = said["attempt"]
    before = attempt["before"]
    tuning = Tuning(Metrics(**before["best"]), tuple(before["history"]), tuple(before["events"]))
    coming = iter(arrays)
    lists = {name: [next(coming) for _ in range(n)] for name, n in zip(_LISTS, said["lengths"], strict=True)}
    return FineTuneState(
        Attempt(tuning, attempt["rate"], attempt["number"]), Metrics(**said["best"]), tuple(said["rows"]), **lists
    )
