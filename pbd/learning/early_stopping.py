"""Whether a block still learns: its validation error per epoch, its best epoch, and when it has flattened."""

import math
from dataclasses import dataclass, field
from typing import Any

FLAT = 0.01
"""An error that falls by less than this share of itself, over the epochs of the patience, has flattened."""


@dataclass
class LearningCurve:
    """One block's errors, before training and after each epoch, and its weights at the best of them."""

    start_counts: bool = True
    """Whether the start may be the best, and flat: not where a block has batch statistics, which it lacks then."""
    losses: list[float] = field(default_factory=list)
    """Mean squared error on the training batches of each epoch."""
    errors: list[float] = field(default_factory=list)
    """Normalised error on the validation split, the first before any training."""
    lowest: float = math.inf
    best: Any = None
    """The weights at the lowest error."""

    def add(self, error: float, weights: Any, loss: float | None = None) -> None:
        """Note an epoch; the start of training has no loss."""
        if self.best is None:
            self.best = weights
        if error < self.lowest and (self.start_counts or loss is not None):
            self.lowest, self.best = error, weights
        self.errors.append(error)
        if loss is not None:
            self.losses.append(loss)

    @property
    def diverged(self) -> bool:
        return not all(map(math.isfinite, [*self.errors[-1:], *self.losses[-1:]]))

    def flat(self, patience: int) -> bool:
        """Return whether `patience` epochs brought the error down by less than `FLAT` of it; 0 is endless patience."""
        errors = self.errors if self.start_counts else self.errors[1:]
        if patience == 0 or len(errors) <= patience:
            return False
        return min(errors[-patience:]) > (1.0 - FLAT) * min(errors[:-patience])
