"""Build the student: assemble, fine-tune, and restore original layers until the accuracy target is met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import keras

from pbd import blocks
from pbd.config import DistillationConfig, RunConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.networks import channels, graph
from pbd.progress import ProgressDisplay
from pbd.records import BlockResult, BlockTask
from pbd.student.adaptation import Adapted
from pbd.student.assemble import swap_blocks
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import validate
from pbd.system import random_state

ROUNDING = 1e-9
"""Tolerance with which the accuracy target counts as met."""
SAFETY_FACTOR = 0.8
"""Share of the allowed accuracy drop for which the next student is planned, since its accuracy is only estimated."""


class StudentWorkers(Protocol):
    """Interface of the workers that adapt and fine-tune a student."""

    def adapt(self, model: keras.Model, ends: Mapping[str, str]) -> Adapted:
        """Adapt the student to its own feature maps, in place (see `adaptation.adapt`)."""
        ...

    def fine_tune(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics,
        first_epoch: int,
        distillation: DistillationConfig,
    ) -> FineTuneState:
        """Fine-tune the trainable layers in place (see `fine_tuning.fine_tune`)."""
        ...


@dataclass(frozen=True)
class Assembled:
    """The teacher with accepted blocks, adapted, before fine-tuning."""

    model: keras.Model
    metrics: Metrics
    """Metrics on the validation split."""
    events: tuple[str, ...] = ()
    """What refitting achieved."""


@dataclass(frozen=True)
class Student:
    """The finished network, and how it was obtained."""

    model: keras.Model
    """Not compiled, so that its file holds no optimiser."""
    assembled: Metrics
    """Metrics on the validation split, before fine-tuning, with all accepted blocks."""
    metrics: Metrics
    """Metrics of `model` on the validation split."""
    history: tuple[dict[str, float], ...] = ()
    """One row per epoch of fine-tuning (see `FineTuneState.history`)."""
    events: tuple[str, ...] = ()
    """Rollbacks and restored layers, in order."""
    restored: dict[str, str] = field(default_factory=dict)
    """Layers that were replaced and then restored from the teacher, with the reason."""


@dataclass
class StudentBuilder:
    """Builds students of one run.

    Args:
        teacher: Flat and functional.
        dataset: The student is trained on its training split; choices are made on its validation split.
        tasks: The tasks of the run.
        config: The settings of the run.
        display: Shows phases.
        workers: Adapt and fine-tune.
    """

    teacher: keras.Model
    dataset: Dataset
    tasks: Sequence[BlockTask]
    config: RunConfig
    display: ProgressDisplay
    workers: StudentWorkers

    def build(self, accepted: Mapping[str, BlockResult], assembled: Assembled | None = None) -> Student:
        """Assemble a student from the accepted blocks, by layer, and fine-tune it.

        If the settings have a `target_accuracy_drop`, the layers with the largest KL divergence are restored and the
        student is built again from the other blocks, until it meets the target or no block is left.

        Args:
            accepted: The blocks.
            assembled: The student before fine-tuning, if it has been assembled.
        """
        random_state.seed(blocks.derive_seed(self.config.seed, "student"))  # for layers such as dropout
        assembled = assembled or self.assemble(accepted)
        model, metrics = assembled.model, assembled.metrics
        self.display.phase(f"assembled {len(accepted)} accepted blocks: {metrics.on_validation()}")
        tuned = self.fine_tune(model, accepted, metrics)
        self.display.phase(f"fine-tuned for {tuned.epoch} epochs: {tuned.best.on_validation()}")
        student = Student(model, metrics, tuned.best, tuned.history, (*assembled.events, *tuned.events))
        if self.config.student.target_accuracy_drop is not None:
            student = self._restore_until_accurate(student, accepted, self.config.student.target_accuracy_drop)
        return replace(student, model=graph.flatten(student.model))

    def assemble(self, accepted: Mapping[str, BlockResult]) -> Assembled:
        """Return the teacher with the accepted blocks, adapted to its own feature maps."""
        model, ends = swap_blocks(self.teacher, self.tasks, accepted)
        if not accepted:
            return Assembled(model, self._validate(model))
        refits = self.config.student.refits
        self.display.phase(f"assembling {len(accepted)} blocks{', refitting convolutions in order' if refits else ''}")
        adapted = self.workers.adapt(model, ends if refits else {})
        return Assembled(channels.remove_unread(model), adapted.metrics, tuple(adapted.events()))

    def fine_tune(
        self, model: keras.Model, accepted: Mapping[str, BlockResult], initial: Metrics, first_epoch: int = 0
    ) -> FineTuneState:
        """Fine-tune the layers of the configured scope, in place; which layers are trainable does not change.

        Args:
            model: The assembled student.
            accepted: Its blocks, by layer.
            initial: Its metrics.
            first_epoch: The epoch of the data with which to start.
        """
        settings = self.config.student
        if settings.fine_tune_epochs == 0 or not accepted:
            return FineTuneState(initial, settings.fine_tune_learning_rate)
        trainable = {layer.name: layer.trainable for layer in model.layers}
        set_trainable(model, accepted, settings.fine_tune_scope)
        still_random = self.config.blocks.block_init == "noise" and self.config.training.epochs == 0
        new_layers = tuple(sorted(layers_of_blocks(accepted)))
        begin = DistillationConfig(from_random_weights=still_random, new_layers=new_layers)
        state = self.workers.fine_tune(model, settings, initial, first_epoch, begin)
        for layer in model.layers:
            layer.trainable = trainable[layer.name]
        return state

    def _validate(self, model: keras.Model) -> Metrics:
        return validate(model, self.teacher, self.dataset)

    def _restore_until_accurate(
        self, student: Student, accepted: Mapping[str, BlockResult], allowed_drop: float
    ) -> Student:
        """Restore layers until the validation score is at most `allowed_drop` below the teacher's.

        Every student is assembled and fine-tuned from scratch, because weights that were fine-tuned around a block are
        no better for the original layer in its place.
        """
        teacher_score = self._validate(self.teacher).score
        target = teacher_score - allowed_drop - ROUNDING
        while student.metrics.score < target and accepted:
            # Assumes that the drop is proportional to the summed KL divergence of the blocks.
            share = SAFETY_FACTOR * allowed_drop / (teacher_score - student.metrics.score)
            worst = worst_blocks(accepted, share)
            accepted = {name: result for name, result in accepted.items() if name not in worst}
            student = self._rebuild(student, accepted, worst, target)
        return student

    def _rebuild(
        self, previous: Student, accepted: Mapping[str, BlockResult], restored: Sequence[str], target: float
    ) -> Student:
        """Return a student of fewer blocks, with the history of the previous one before its own."""
        assembled = self.assemble(accepted)
        tuned = self.fine_tune(assembled.model, accepted, assembled.metrics, len(previous.history))
        change = f"{previous.metrics.on_validation()} -> {tuned.best.on_validation()}"
        event = f"restored {', '.join(restored)}: {change} (target {target:.4f})"
        self.display.phase(event)
        reason = f"largest KL divergence, with the student at {previous.metrics.score:.4f} < {target:.4f}"
        return Student(
            model=assembled.model,
            assembled=previous.assembled,
            metrics=tuned.best,
            history=previous.history + tuned.history,
            events=(*previous.events, event, *assembled.events, *tuned.events),
            restored=previous.restored | dict.fromkeys(restored, reason),
        )


def set_trainable(student: keras.Model, accepted: Mapping[str, BlockResult], scope: str) -> None:
    """Make exactly the layers of a fine-tuning scope trainable.

    Args:
        student: Changed in place.
        accepted: Its blocks, by layer.
        scope: `all`, `blocks`, or `no_1x1_dense`: all but the teacher's 1x1 convolutions and dense layers (the paper's
            setting for ResNets).
    """
    in_blocks = layers_of_blocks(accepted)
    for layer in student.layers:
        if scope == "all":  # including layers that were frozen in the teacher
            layer.trainable = True
        elif scope == "blocks":
            layer.trainable = layer.name in in_blocks
        elif layer.name not in in_blocks:
            pointwise = isinstance(layer, keras.layers.Conv2D) and tuple(layer.kernel_size) == (1, 1)
            layer.trainable = not (pointwise or isinstance(layer, keras.layers.Dense))


def layers_of_blocks(accepted: Mapping[str, BlockResult]) -> set[str]:
    """Return the names of the layers with weights of all blocks."""
    return {key.rpartition("/")[0] for result in accepted.values() for key in result.weights}


def worst_blocks(accepted: Mapping[str, BlockResult], share: float) -> tuple[str, ...]:
    """Return the layers with the largest KL divergence: as few as leave the others at most `share` of the sum.

    At least one and at most half of the blocks, rounded up. The divergence is that of the teacher with only this block
    swapped in.
    """
    damage = {name: _divergence(result) for name, result in accepted.items()}
    worst = sorted(damage, key=lambda name: damage[name], reverse=True)
    total = sum(damage.values())
    enough = (count for count in range(1, len(worst)) if sum(damage[name] for name in worst[count:]) <= share * total)
    return tuple(worst[: min(next(enough, len(worst)), math.ceil(len(worst) / 2))])


def _divergence(result: BlockResult) -> float:
    return result.val_kl if result.val_kl is not None and math.isfinite(result.val_kl) else math.inf
