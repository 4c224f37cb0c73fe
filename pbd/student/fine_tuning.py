"""Fine-tune a student against its frozen teacher: keep the best epoch, undo and repeat epochs that diverge."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from pbd.collective import SINGLE, Collective
from pbd.config import DistillationConfig, StudentConfig
from pbd.data import Dataset, WorkerShare
from pbd.data.mixing import Mixing
from pbd.learning import ghost_batch_norm, teacher_table
from pbd.learning.distillation import DistillationModel, logits_model, teacher_logits
from pbd.learning.ghost_batch_norm import ShareStatistics
from pbd.learning.loop import ReportProgress, adam, trainer
from pbd.learning.losses import make_loss
from pbd.learning.metrics import Metrics
from pbd.networks import precision
from pbd.records import ProgressCallback
from pbd.student.checkpoints import CheckpointFile, FineTuneState
from pbd.student.epoch_quality import divergence, is_better, standard_error
from pbd.student.validation import Validator

ROLLBACK_FACTOR = 0.25
"""Factor on the learning rate after a divergence."""
MAX_ROLLBACKS = 4


@dataclass
class FineTuner:
    """The training loop. It advances `state` by one epoch at a time and writes it to the checkpoint."""

    student: keras.Model
    learner: keras.Model
    """What is trained: the student itself, or its copy in half precision."""
    teacher: keras.Model
    distillation_model: DistillationModel
    dataset: Dataset
    """This worker's part of the data."""
    epochs: int
    first_epoch: int
    """The epoch of the data with which fine-tuning starts."""
    distillation: DistillationConfig
    """What the student learns from besides logits and labels, and how it begins."""
    collective: Collective
    emit: ProgressCallback
    checkpoint: CheckpointFile | None
    state: FineTuneState
    learns_from_teacher: bool
    """Whether the loss has a term of the teacher's outputs."""
    keep_zeros: bool = False
    """Whether weights of kernels that are zero at the start stay zero, except in new layers."""
    keeps_last: bool = False
    """Whether the last epoch counts as the best one."""
    _divergence: str | None = None
    """Why the current epoch diverged."""

    def run(self) -> FineTuneState:
        """Train all remaining epochs; leave the student with its best weights."""
        while self.state.epoch < self.epochs and self.state.rollbacks <= MAX_ROLLBACKS:
            self._train()
            if self._divergence:
                self.state = self._roll_back(self._divergence)
        self.student.set_weights(self.state.best_weights)
        return replace(self.state, variables=(), optimizer_variables=())

    def _train(self) -> None:
        """Train until the last epoch is complete or one diverges."""
        state, variables = self.state, self.distillation_model.trainable_variables
        if state.variables:  # read from a checkpoint: continue exactly where it was written
            _assign(self._variables, state.variables)
        else:
            self.learner.set_weights(state.best_weights)
            _assign(self.distillation_model.projector_variables, state.best_projectors)
        optimizer = adam(
            state.learning_rate,
            self._steps,
            variables,
            keep_zeros=self.keep_zeros,
            warmup=self._warmup,
            scale_steps=not self.distillation.from_random_weights,
            new=self._new_variables,
        )
        if state.variables:
            _assign(optimizer.variables, state.optimizer_variables)
            self.state = state = replace(state, variables=(), optimizer_variables=())  # frees their memory
        self._divergence = None
        normalisations = ghost_batch_norm.normalisations(self.distillation_model.student)
        trainer(self.distillation_model, optimizer, self.dataset, self.collective).fit(
            first_epoch=state.epoch,
            epochs=self.epochs,
            first_data_epoch=self.first_epoch + state.epoch,
            callbacks=[
                ShareStatistics(normalisations, self.collective, self.dataset.share),  # first: validation needs them
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: self.distillation_model.begin_epoch(self.first_epoch + epoch),
                    on_train_batch_end=self._check_loss,
                    on_epoch_end=lambda epoch, logs: self._end_epoch(logs, optimizer),
                ),
                ReportProgress(self.emit, "fine-tuning"),
            ],
        )

    def _check_loss(self, batch: int, logs: dict[str, Any]) -> None:
        if not math.isfinite(float(logs["loss"])):
            self._stop("the loss is not a finite number")

    def _stop(self, reason: str) -> None:
        self._divergence = reason
        self.distillation_model.stop_training = True

    def _end_epoch(self, logs: dict[str, Any], optimizer: keras.optimizers.Optimizer) -> None:
        """Validate; add the epoch to the state unless it diverged."""
        if self._divergence:
            return
        if self.learner is not self.student:
            self.student.set_weights(self.learner.get_weights())
        metrics = self._validator.metrics(self.student)
        chance = 1.0 / max(2, self.student.output_shape[-1])
        reason = divergence(metrics, None if self.distillation.from_random_weights else self.state.best, chance)
        if reason:
            self._stop(reason)
            return
        row = {"epoch": self.first_epoch + self.state.epoch + 1, "loss": float(logs["loss"]), **_as_row(metrics)}
        row["learning_rate"] = self._learning_rate()
        highest = max(self.state.highest_score, self.state.best.score, metrics.score)
        self.state = replace(self.state, history=(*self.state.history, row), highest_score=highest)
        if self.keeps_last or is_better(metrics, self.state.best, highest, self._tolerance):
            weights, projectors = self.student.get_weights(), _values(self.distillation_model.projector_variables)
            self.state = replace(self.state, best=metrics, best_weights=weights, best_projectors=projectors)
        if self.checkpoint is not None:
            variables, of_optimizer = _values(self._variables), _values(optimizer.variables)
            current = replace(self.state, variables=variables, optimizer_variables=of_optimizer)
            self.checkpoint.write(current)

    @functools.cached_property
    def _validator(self) -> Validator:
        return Validator(self.teacher, self.dataset, self.collective)

    @property
    def _tolerance(self) -> float:
        """The difference of two scores that tells nothing; 0 if the student learns from labels alone."""
        images = len(self.dataset.validation)
        return standard_error(self.state.highest_score, images) if self.learns_from_teacher else 0.0

    @property
    def _variables(self) -> list[Any]:
        """All variables that a checkpoint holds besides those of the optimiser."""
        return [*self.learner.variables, *self.distillation_model.projector_variables]

    @property
    def _new_variables(self) -> list[Any]:
        """The trained variables of the layers whose zeros are no pruned weights."""
        layers = [layer for layer in self.learner.layers if layer.name in self.distillation.new_layers]
        return [variable for layer in layers for variable in layer.trainable_variables]

    @property
    def _steps(self) -> int:
        """The length of the current schedule, which always ends with the last epoch, wherever it started."""
        return self.dataset.steps_per_epoch * (self.epochs - self.state.schedule_start)

    @property
    def _warmup(self) -> int:
        """The first steps of the current schedule, in which the learning rate rises."""
        return min(round(self.distillation.warmup * self._steps), self._steps - 1)

    def _learning_rate(self) -> float:
        """Return the learning rate with which the current epoch started; while it rises, the one that it rises to."""
        steps, warmup = self.dataset.steps_per_epoch * (self.state.epoch - self.state.schedule_start), self._warmup
        return cosine_decay(self.state.learning_rate, max(0, steps - warmup) / (self._steps - warmup))

    def _roll_back(self, reason: str) -> FineTuneState:
        """Return the state from which the epoch that diverged is repeated, with a new cosine schedule."""
        diverged_at, rollbacks = self._learning_rate(), self.state.rollbacks + 1
        learning_rate = ROLLBACK_FACTOR * diverged_at
        outcome = f"repeated at {learning_rate:g}" if rollbacks <= MAX_ROLLBACKS else "fine-tuning ends"
        epoch = self.first_epoch + self.state.epoch + 1
        event = f"epoch {epoch} diverged at learning rate {diverged_at:g} ({reason}): undone, {outcome}"
        return replace(
            self.state,
            learning_rate=learning_rate,
            schedule_start=self.state.epoch,
            rollbacks=rollbacks,
            events=(*self.state.events, event),
        )


def fine_tune(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    config: StudentConfig,
    initial: Metrics,
    emit: ProgressCallback,
    first_epoch: int = 0,
    collective: Collective = SINGLE,
    checkpoint: CheckpointFile | None = None,
    distillation: DistillationConfig | None = None,
    training_precision: str = "float32",
) -> FineTuneState:
    """Train the student and leave it at its best epoch on the validation split, which may be the start, or at its last.

    The score on the validation images, accuracy or agreement, is a count with a standard error: among the epochs that
    lie within one of the highest score, the best is the one whose outputs diverge least from the teacher's. If the
    student learns from labels alone, the highest score counts. With `fine_tune_keep="last"`, the student is left at its
    last epoch; `auto` is `best` here.

    If an epoch diverges, training returns to the best weights so far and repeats it, and the epochs after it, with a
    new cosine schedule from a quarter of the learning rate with which the epoch started; at most `MAX_ROLLBACKS` times.

    Args:
        student: Its trainable layers are changed in place.
        teacher: The network whose logits the student learns; it is copied. The student may have other layers.
        dataset: The whole data; only the losses `cross_entropy` and `mixed` need labels.
        config: Loss, number of epochs, and the learning rate from which it decays.
        initial: The student's validation metrics before fine-tuning.
        emit: Called with the progress of every step.
        first_epoch: The epoch of the data with which to start.
        collective: The workers that fine-tune the same student with the same arguments at the same time, each on its
            part of every batch; at most as many as the batch has split units (see `ghost_batch_norm.split_unit`).
        checkpoint: Where to resume from and to write the state after every epoch; None for neither.
        distillation: What the student learns from besides, by default nothing, and how the learning rate rises.
        training_precision: float32, or bfloat16: what student and teacher compute in during training, except for their
            logits. The student's weights are those of the float32 network that is validated after every epoch.

    Returns:
        The final state: best metrics and weights, history, events.

    Raises:
        UsageError: A layer that `distillation` names is missing, or its outputs do not suit the loss; or the teacher is
            no ensemble, of which `distillation` draws a member.
        CollectiveAbortedError: Another worker failed.
        CollectiveLostError: Another worker was lost.
    """
    distillation = distillation or DistillationConfig()
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    learner = precision.mixed_classifier(student, training_precision)
    student_logits = logits_model(learner, images)
    logits_of_teacher = teacher_logits(teacher, dataset, distillation, training_precision, images)
    size = ghost_batch_norm.ghost_batch_size(dataset.batch_size)
    if not math.isfinite(initial.kl):  # the outputs are not finite: let any epoch count as better
        initial = Metrics(None if initial.accuracy is None else 0.0, 0.0, math.inf)
    model = DistillationModel(student_logits, logits_of_teacher, make_loss(config), size, distillation.features)
    unit = ghost_batch_norm.split_unit(student_logits, dataset.batch_size, distillation.compares_images)
    share, mixing = WorkerShare(collective.index, collective.size), Mixing(config.mixup, config.cutmix)
    start = FineTuneState(
        initial,
        config.fine_tune_learning_rate,
        best_weights=student.get_weights(),
        best_projectors=_values(model.projector_variables),
    )
    if not model.trainable_variables:
        return replace(start, events=("nothing is fine-tuned: no layer of the scope has trainable weights",))
    state = (checkpoint and checkpoint.read()) or start
    part = replace(dataset.shared(share, unit), mixing=mixing)
    learns_from_teacher = config.fine_tune_loss != "cross_entropy"
    if learns_from_teacher and state.epoch < config.fine_tune_epochs:
        part = teacher_table.use(model, part, collective, config.fine_tune_epochs)
    tuner = FineTuner(
        student=student,
        learner=learner,
        teacher=teacher,
        distillation_model=model,
        dataset=part,
        epochs=config.fine_tune_epochs,
        first_epoch=first_epoch,
        distillation=distillation,
        collective=collective,
        emit=emit,
        checkpoint=checkpoint,
        state=state,
        learns_from_teacher=learns_from_teacher,
        keep_zeros=config.keep_zeros,
        keeps_last=config.fine_tune_keep == "last",
    )
    del state  # may hold the variables of a checkpoint, which training frees
    return tuner.run()


def cosine_decay(initial: float, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] of the schedule of `loop.adam`."""
    return 0.5 * initial * (1.0 + math.cos(math.pi * progress))


def _as_row(metrics: Metrics) -> dict[str, float]:
    row = {"val_accuracy": metrics.accuracy, "val_agreement": metrics.agreement, "val_kl": metrics.kl}
    return {name: value for name, value in row.items() if value is not None}


def _values(variables: Sequence[Any]) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
