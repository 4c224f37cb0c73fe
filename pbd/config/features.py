"""The settings of distillation by feature maps: which layers of student and teacher are compared, and how."""

import json
from dataclasses import dataclass
from typing import Any

from pbd.config.values import as_kind, at_least, one_of
from pbd.errors import UsageError

FEATURE_WEIGHTS = {"at": 1000.0, "sp": 3000.0, "pkt": 30000.0, "fsp": 50.0, "crd": 0.8, "mse": 100.0, "keras": 1.0}
"""Default weight of each loss, added to that of the logits: as in RepDistiller, the code of Tian et al. 2020
(arXiv:1910.10699); for `keras`, a loss of Keras, 1."""
COMPARES_IMAGES = ("sp", "pkt", "crd")
"""Losses that compare the images of a batch with one another."""
ENSEMBLE_TEACHERS = ("mean", "drawn")
LOGITS = ""
"""The name that stands for the logits of a network, in place of a layer's."""


@dataclass(frozen=True)
class Feature:
    """A loss between layers of the student and of the teacher, added to the loss of the logits.

    Example:
        >>> Feature("at", "conv3_relu", "stage2_block3_relu")
    """

    loss: str
    """at, sp, pkt, fsp, crd, mse (see `pbd.learning.losses`), or keras."""
    student: str | tuple[str, ...]
    """The name of a layer of the student, whose outputs are compared; for fsp, of two layers."""
    teacher: str | tuple[str, ...]
    """The same of the teacher."""
    weight: float | None = None
    """Factor of the loss (default: see `FEATURE_WEIGHTS`)."""
    keras_loss: str | None = None
    """For keras: the loss, as JSON of `keras.losses.serialize`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", as_kind("the weight of a feature loss", float | None, self.weight))
        one_of("feature loss", self.loss, FEATURE_WEIGHTS)
        at_least("the weight of a feature loss", self.weight, 0)
        object.__setattr__(self, "student", _names("student", self.loss, self.student))
        object.__setattr__(self, "teacher", _names("teacher", self.loss, self.teacher))
        if (self.loss == "keras") != (self.keras_loss is not None):
            raise UsageError(
                f"the feature loss keras, and no other, needs keras_loss. Received: {self.loss}, {self.keras_loss}. "
                "Give a keras.distillation.FeatureDistillation."
            )

    @property
    def factor(self) -> float:
        """The weight of the loss."""
        return FEATURE_WEIGHTS[self.loss] if self.weight is None else self.weight

    @property
    def compares_images(self) -> bool:
        """Whether the loss compares the images of a batch with one another."""
        return self.loss in COMPARES_IMAGES

    @property
    def seed(self) -> str:
        """What initial weights of the projectors derive from."""
        return json.dumps([self.loss, self.student, self.teacher])


@dataclass(frozen=True)
class DistillationConfig:
    """What fine-tuning learns from besides logits and labels, by default nothing, and how it begins."""

    features: tuple[Feature, ...] = ()
    """Losses between layers."""
    warmup: float = 0.05
    """Share of the steps, in [0, 1), in which the learning rate rises, by the same amount with every step: the first
    steps of Adam change every weight by the learning rate, however small its gradient is."""
    from_random_weights: bool = False
    """Whether the network, or what is new in it, begins with random weights. Then steps have the same size for all
    weights, and an epoch diverged only if numbers are not finite: at first the accuracy fluctuates."""
    ensemble_teacher: str = "mean"
    """What a step learns from if the teacher is an ensemble: its outputs, the mean of those of its members, or the
    outputs of one member, drawn for each step (see `DrawnTeacher`)."""
    new_layers: tuple[str, ...] = ()
    """Layers whose zeros are no pruned weights: they are trained even if zeros are kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if not 0.0 <= self.warmup < 1.0:
            raise UsageError(f"warmup must lie in [0, 1). Received: {self.warmup}. Give 0.05 for 5% of the steps.")
        one_of("ensemble_teacher", self.ensemble_teacher, ENSEMBLE_TEACHERS)
        if self.draws_member and self.features:
            raise UsageError(
                "ensemble_teacher drawn and losses between layers exclude each other, since only one member computes "
                f"in a step. Received: {len(self.features)} features. Give ensemble_teacher mean, or no features."
            )

    @property
    def draws_member(self) -> bool:
        """Whether one member of an ensemble is drawn for each step."""
        return self.ensemble_teacher == "drawn"

    @property
    def compares_images(self) -> bool:
        """Whether a loss compares the images of a batch with one another."""
        return any(feature.compares_images for feature in self.features)


def _names(whose: str, loss: str, received: Any) -> tuple[str, ...]:
    names = tuple(received) if isinstance(received, list | tuple) else (received,)
    count = 2 if loss == "fsp" else 1
    if len(names) != count or not all(isinstance(name, str) for name in names):
        layers = "the name of one layer" if count == 1 else "the names of two layers"
        raise UsageError(
            f"the feature loss {loss} takes {layers} of the {whose}. Received: {received!r}. Give {layers}."
        )
    return names
