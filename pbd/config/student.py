"""The settings of the student: the choice of its blocks, and what happens to it when it is assembled."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pbd.config import budgets
from pbd.config.values import Section, at_least, fraction, one_of, positive
from pbd.errors import UsageError

FINE_TUNE_LOSSES = ("kd_mse", "kd_kl", "cross_entropy", "mixed")
NEED_LABELS = ("cross_entropy", "mixed")
KEPT_EPOCHS = ("auto", "best", "last")
FINE_TUNE_SCOPES = ("blocks", "all", "no_1x1_dense")
TRAINING_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "fine_tune_epochs": functools.partial(at_least, least=0),
    "distillation_weight": fraction,
    "fine_tune_scope": functools.partial(one_of, choices=FINE_TUNE_SCOPES),
    "fine_tune_keep": functools.partial(one_of, choices=KEPT_EPOCHS),
    "fine_tune_loss": functools.partial(one_of, choices=FINE_TUNE_LOSSES),
    "mixup": functools.partial(at_least, least=0),
    "cutmix": functools.partial(at_least, least=0),
    "temperature": positive,
    "fine_tune_learning_rate": positive,
}
"""The checks of the settings of fine-tuning; each takes the name of the setting, for its message, and the value."""
_LIMITS = ("accuracy_threshold", "max_accuracy_drop", "target_accuracy_drop")
MAX_ACCURACY_DROP = 0.2
"""The default of `max_accuracy_drop` where blocks are accepted one by one."""


@dataclass(frozen=True)
class StudentConfig(Section):
    """The choice of the blocks, and the fine-tuning of the assembled student."""

    accuracy_threshold: float | None = None
    """Accept a block if the teacher with only this block swapped in reaches this validation accuracy (without labels:
    agreement)."""
    max_accuracy_drop: float | None = None
    """Accept a block if the teacher with only this block swapped in loses at most this much validation accuracy
    (default: 0.2)."""
    budget: tuple[str, ...] = ()
    """What the student may need: latency:0.5 (half of the teacher's, measured in the target), macs:0.3, params:0.25,
    params:100000 or bytes:100000 (its file in the target). Within it, the candidates with the least divergence from the
    teacher are chosen. The default is max_drop 0.01; if designs or thresholds of accuracy are given alone, blocks are
    accepted by their accuracy."""
    sweep: str | None = None
    """A student for each of several budgets, such as latency:0.8,0.6,0.4, from one set of blocks; the run directory
    gets a table and a picture of all of them, and the folder front with their files."""
    max_drop: float | None = None
    """Alone, without a budget: the fastest student in the target that loses at most this much validation accuracy
    (without labels: agreement). Before fine-tuning it may lose 8 times as much; if fine-tuning does not recover that, a
    student that loses 3 times as much is tried, then one within the limit before fine-tuning, which is the result even
    if it loses more afterwards."""
    target_batch: int = 1
    """Images in a pass, for a budget of latency and for max_drop."""
    refit: bool | None = None
    """Before fine-tuning, correct the convolutions of the assembled student by least squares, from the first to the
    last, each on what the student computes before it; kept only if the divergence from the teacher falls (default: with
    a budget, a sweep or max_drop, unless zeros are kept)."""
    fine_tune_epochs: int = 8
    """Passes over the training images for the assembled student; 0: no fine-tuning."""
    fine_tune_scope: str = "all"
    """Layers to fine-tune: blocks, all, or no_1x1_dense (all but the teacher's 1x1 convolutions and dense layers)."""
    fine_tune_keep: str = "auto"
    """The epoch whose weights fine-tuning ends with: best (on the validation images; may be the start), last, or auto.
    A teacher that was trained on the validation images is too accurate on them, and so is the student before it is
    fine-tuned, so that best would keep the start: use last. auto: last if the teacher was already trained and the
    validation images are a part of the training images; else best."""
    fine_tune_learning_rate: float = 0.003
    """Learning rate of Adam for the student after the first 5% of the steps, in which it rises; then it decays to zero
    along a cosine. Kernels whose weights have a root mean square below 0.05 have a lower one in proportion."""
    fine_tune_loss: str = "kd_mse"
    """kd_mse (teacher's logits), kd_kl (teacher's softened outputs), cross_entropy (labels), or mixed (kd_kl and
    cross_entropy)."""
    temperature: float = 4.0
    """Divides the logits before the softmax in kd_kl and mixed."""
    distillation_weight: float = 0.9
    """Weight of the teacher's term in mixed, in [0, 1]; the labels get the rest."""
    mixup: float = 0.0
    """Fine-tune on weighted sums of two images, which student and teacher both see; weights are drawn from Beta(mixup,
    mixup), with 1 uniformly from [0, 1]; 0: no mixup. A loss on labels is weighted likewise."""
    cutmix: float = 0.0
    """Fine-tune on images into each of which a box of another image is pasted, which student and teacher both see; the
    share that is kept is drawn from Beta(cutmix, cutmix). With mixup as well, either is drawn for each image. 0: no
    CutMix."""
    keep_zeros: bool = False
    """Weights of kernels that are zero when fine-tuning starts stay zero, such as those that pruning removed; those of
    new blocks are trained. Layers are refitted only with `refit` then, which makes such weights non-zero."""
    target_accuracy_drop: float | None = None
    """Restore layers of the teacher until the student loses at most this much validation accuracy (without labels:
    agreement). The student is assembled and fine-tuned again each time."""

    def check(self) -> None:
        budgets.check(self.budget)
        if self.sweep is not None:
            budgets.sweep(self.sweep)
        fraction("max_drop", self.max_drop)
        ways = {"budget": " ".join(self.budget), "sweep": self.sweep, "max_drop": self.max_drop}
        chosen = [f"{name} {value}" for name, value in ways.items() if value not in ("", None)]
        if len(chosen) > 1:
            raise UsageError(
                f"budget, sweep and max_drop exclude one another. Received: {' and '.join(chosen)}. Give one of them."
            )
        at_least("target_batch", self.target_batch, 1)
        fraction("accuracy_threshold", self.accuracy_threshold)
        fraction("max_accuracy_drop", self.max_accuracy_drop)
        set_too = [f"{name} {getattr(self, name)}" for name in _LIMITS if getattr(self, name) is not None]
        if chosen and set_too:
            raise UsageError(
                "a budget chooses the blocks, without a threshold of accuracy. "
                f"Received: {chosen[0]} and {set_too[0]}. Give one of them, not both."
            )
        if self.accuracy_threshold is not None and self.max_accuracy_drop is not None:
            raise UsageError(
                "accuracy_threshold and max_accuracy_drop exclude each other. "
                f"Received: {self.accuracy_threshold} and {self.max_accuracy_drop}. Give one of them, not both."
            )
        fraction("target_accuracy_drop", self.target_accuracy_drop)
        for name, check in TRAINING_CHECKS.items():
            check(name, getattr(self, name))

    @property
    def chooses_together(self) -> bool:
        """Whether blocks are chosen together, by what the student needs or loses, and not each by its accuracy."""
        return bool(self.budget) or self.sweep is not None or self.max_drop is not None

    @property
    def needs_labels(self) -> bool:
        """Whether fine-tuning learns from labels."""
        return self.fine_tune_epochs > 0 and self.fine_tune_loss in NEED_LABELS

    @property
    def limits_accuracy(self) -> bool:
        """Whether a threshold for the accuracy of single blocks, or a target for that of the student, is set."""
        return any(getattr(self, name) is not None for name in _LIMITS)

    @property
    def refits(self) -> bool:
        """Whether the assembled student is refitted: by default under a budget, unless zeros have to stay."""
        return self.chooses_together and not self.keep_zeros if self.refit is None else self.refit

    def lowest_accuracy(self, teacher_accuracy: float) -> float:
        """Return the validation accuracy (without labels: agreement) that a block must reach to be accepted."""
        if self.accuracy_threshold is not None:
            return self.accuracy_threshold
        return teacher_accuracy - (MAX_ACCURACY_DROP if self.max_accuracy_drop is None else self.max_accuracy_drop)
