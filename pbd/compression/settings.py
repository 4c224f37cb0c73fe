"""The settings of the trainings in steps, and of quantisation-aware training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pbd.config import TRAINING_CHECKS, StudentConfig
from pbd.errors import UsageError

if TYPE_CHECKING:
    from pbd.compression.step import Step  # loads NumPy

BETWEEN_ROUNDS = {"epochs": "fine_tune_epochs", "learning_rate": "fine_tune_learning_rate", "loss": "fine_tune_loss"}
"""By the settings of pruning that `StudentConfig` has as well, their names there."""
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


def check_method(method: str, training: Training) -> None:
    """Check that settings of quantisation-aware training are given for `qat` only.

    Raises:
        UsageError: one is another than its default, and the method is `ptq`, which does not train.
    """
    for field in fields(Training):
        value = getattr(training, field.name)
        if method == "ptq" and value != field.default:
            raise UsageError(
                f"{field.name} is a setting of method qat. Received: {field.name} {value} with method ptq. "
                f"Give method qat, or leave out {field.name}."
            )


def of_step(step: "Step", names: Mapping[str, str], **others: Any) -> StudentConfig:
    """Return the settings of a training within a step.

    Args:
        step: the step.
        names: by its settings, their names in `StudentConfig`.
        others: settings of `StudentConfig` that the step does not have.

    Raises:
        UsageError: one is out of its range; the message has the name that the step gives it.
    """
    for name, setting in names.items():
        TRAINING_CHECKS[setting](name, getattr(step, name))
    return StudentConfig(**{setting: getattr(step, name) for name, setting in names.items()}, **others)
