"""The state of fine-tuning, written after every epoch so that an interrupted run resumes with the same result."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from pbd.collective import Collective
from pbd.learning.metrics import Metrics
from pbd.run_dir.archive import pack, unpack
from pbd.run_dir.journal import Journal

_ARRAYS = ("best_weights", "variables", "optimizer_variables", "best_projectors")
_MAX_EPOCHS = 1_000_000  # bounds the epoch within a progress number
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuneState:
    """Everything that fine-tuning needs to continue after an epoch; after the last epoch, its result."""

    best: Metrics
    """Validation metrics of `best_weights`."""
    learning_rate: float
    """The learning rate to which the current schedule rises, and from which it decays along a cosine."""
    highest_score: float = 0.0
    """The highest validation score of all epochs so far, perhaps not that of `best_weights`; 0 before the first."""
    schedule_start: int = 0
    """The epoch at which the current cosine schedule starts, from 0; greater than 0 after a rollback."""
    rollbacks: int = 0
    """How many epochs have diverged and were undone."""
    history: tuple[dict[str, float], ...] = ()
    """Epoch, loss, validation metrics and learning rate of each completed epoch: the one with which it began, or if it
    was rising then, the one to which it rises."""
    events: tuple[str, ...] = ()
    """One line per rollback, or why nothing was trained."""
    best_weights: Sequence[np.ndarray] = field(default=(), compare=False)
    variables: Sequence[np.ndarray] = field(default=(), compare=False)
    """All current variables of the student, including random generator states, then those of the projectors of its
    features; empty except in a checkpoint."""
    optimizer_variables: Sequence[np.ndarray] = field(default=(), compare=False)
    """All current variables of the optimiser; empty except in a checkpoint."""
    best_projectors: Sequence[np.ndarray] = field(default=(), compare=False)
    """The variables of the projectors at `best_weights`."""

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return len(self.history)


class CheckpointFile:
    """A checkpoint in the run directory. Member 0 of a collective writes it, all members read it.

    Args:
        journal: The run directory.
        name: The path of the file within the run directory.
        collective: The workers that fine-tune the same student.
    """

    def __init__(self, journal: Journal, name: str, collective: Collective) -> None:
        self._journal, self._name, self._collective = journal, name, collective

    def read(self) -> FineTuneState | None:
        """Return the last state written, or `None` if there is none or if the workers do not all see the same one."""
        state = self._load()
        number = 0 if state is None else 1 + state.rollbacks * _MAX_EPOCHS + state.epoch
        # Workers can only add numbers. By the Cauchy-Schwarz inequality, n * sum(x^2) >= sum(x)^2 for n numbers, with
        # equality only if all are equal. Both sides are integers below 2^53 here, so float64 compares them exactly.
        total, squares = self._collective.all_reduce_sum(np.array([number, number**2], np.float64))
        return state if squares * self._collective.size == total**2 else None

    def write(self, state: FineTuneState) -> None:
        """Replace the checkpoint. If it cannot be written, log a warning; training continues."""
        if self._collective.index == 0:
            try:
                self._journal.write_bytes(self._name, _pack(state))
            except OSError as error:
                _log.warning("cannot write the fine-tuning checkpoint: %s", error)

    def _load(self) -> FineTuneState | None:
        path = self._journal.file(self._name)
        if not path.exists():
            return None
        try:
            return _unpack(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:  # the last two: written by another version of pbd
            _log.warning("%s is damaged (%s): fine-tuning starts from the beginning.", path, error)
            return None


def _pack(state: FineTuneState) -> bytes:
    groups = [getattr(state, name) for name in _ARRAYS]
    values = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _ARRAYS}
    values |= {"best": vars(state.best), "lengths": [len(group) for group in groups]}
    return pack(values, [array for group in groups for array in group])


def _unpack(data: bytes) -> FineTuneState:
    values, arrays = unpack(data)
    remaining = iter(arrays)
    lengths = [*values.pop("lengths"), 0]  # a checkpoint without projectors has no length for them
    groups = {name: [next(remaining) for _ in range(n)] for name, n in zip(_ARRAYS, lengths, strict=False)}
    values |= {
        "best": Metrics(**values["best"]),
        "history": tuple(values["history"]),
        "events": tuple(values["events"]),
    }
    return FineTuneState(**(values | groups))
