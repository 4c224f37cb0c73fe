"""The learning curve of one block: validation error per epoch, best epoch, and whether it has stopped improving."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

PLATEAU = 0.01
"""An error is on a plateau if it falls by less than this share over the epochs of the patience."""


@dataclass
class LearningCurve:
    """One block's errors, before training and after each epoch, and its weights at the lowest error.

    It is empty if the block was not trained.
    """

    COPIES: ClassVar[int] = 1
    """Copies of the block's weights that a curve holds."""

    include_start: bool = True
    """Whether the start may be the best epoch: not for blocks with batch statistics, which have none then."""
    losses: list[float] = field(default_factory=list)
    """Mean squared error on the training batches of each epoch."""
    errors: list[float] = field(default_factory=list)
    """Normalised error on the validation images for early stopping; the first is before training."""
    lowest_error: float = math.inf
    best_weights: Any = None
    """The weights at the lowest error."""

    def add(self, error: float, weights: Any, loss: float | None = None) -> None:
        """Add an epoch, or the start of training, which has no loss."""
        if self.best_weights is None:
            self.best_weights = weights
        if error < self.lowest_error and (self.include_start or loss is not None):
            self.lowest_error, self.best_weights = error, weights
        self.errors.append(error)
        if loss is not None:
            self.losses.append(loss)

    @property
    def diverged(self) -> bool:
        """Whether the last error or the last loss is not finite."""
        return not all(map(math.isfinite, [*self.errors[-1:], *self.losses[-1:]]))

    def has_plateaued(self, patience: int) -> bool:
        """Return whether the last `patience` epochs lowered the error by less than `PLATEAU`; with 0, never."""
        errors = self.errors if self.include_start else self.errors[1:]
        if patience == 0 or len(errors) <= patience:
            return False
        return min(errors[-patience:]) > (1.0 - PLATEAU) * min(errors[:-patience])
