"""The settings of quantisation-aware training."""

import math
from dataclasses import dataclass

from pbd.errors import UsageError

METHODS = ("ptq", "qat")
"""After training, and trained for 8-bit integers."""


@dataclass(frozen=True)
class Training:
    """How a network is trained for 8-bit integers."""

    epochs: int = 1
    """Passes over the training images; the best one counts, which may be the start."""
    learning_rate: float = 1e-5
    """The learning rate of Adam, which rises first and decays to zero along a cosine."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"epochs must be at least 1. Received: {self.epochs}. Give 1, or method ptq.")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UsageError(
                f"learning_rate must be positive and finite. Received: {self.learning_rate}. Give 0.00001."
            )
