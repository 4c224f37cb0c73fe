"""Fine-tune a student against its frozen teacher: keep the best epoch, undo and repeat epochs that diverge."""

import math
from dataclasses import dataclass, replace
from typing import Any

import keras

from pbd.collective import SINGLE, Collective
from pbd.config import StudentConfig
from pbd.data import Dataset, WorkerShare
from pbd.learning import ghost_batch_norm
from pbd.learning.distillation import DistillationModel, logits_model
from pbd.learning.ghost_batch_norm import ShareStatistics
from pbd.learning.loop import ReportProgress, adam, trainer
from pbd.learning.losses import make_loss
from pbd.learning.metrics import Metrics, evaluate
from pbd.networks import graph
from pbd.records import ProgressCallback
from pbd.student.checkpoints import CheckpointFile, FineTuneState

COLLAPSE = 0.5
"""An epoch diverges if it keeps less than this share of the best score's lead over chance."""
MIN_LEAD = 0.1
"""Smaller leads over chance than this fluctuate; losing one is no divergence."""
ROLLBACK_FACTOR = 0.25
"""Factor on the learning rate after a divergence."""
MAX_ROLLBACKS = 4


@dataclass
class FineTuner:
    """The training loop. It advances `state` by one epoch at a time and writes it to the checkpoint."""

    student: keras.Model
    teacher: keras.Model
    distillation_model: DistillationModel
    dataset: Dataset
    """This worker's part of the data."""
    epochs: int
    first_epoch: int
    """The epoch of the data with which fine-tuning starts."""
    collective: Collective
    emit: ProgressCallback
    checkpoint: CheckpointFile | None
    state: FineTuneState
    keep_zeros: bool = False
    """Whether weights of kernels that are zero at the start stay zero."""
    _divergence: str | None = None
    """Why the current epoch diverged."""

    def run(self) -> FineTuneState:
        """Train all remaining epochs; leave the student with its best weights."""
        while self.state.epoch < self.epochs and self.state.rollbacks <= MAX_ROLLBACKS:
            self._train()
            if self._divergence:
                self.state = self._roll_back(self._divergence)
        self.student.set_weights(self.state.best_weights)
        return self.state

    def _train(self) -> None:
        """Train until the last epoch is complete or one diverges."""
        state, steps = self.state, self.dataset.steps_per_epoch
        variables = self.distillation_model.trainable_variables
        if state.variables:  # read from a checkpoint: continue exactly where it was written
            _assign(self.student, state.variables)
        else:
            self.student.set_weights(state.best_weights)
        # The cosine schedule always ends with the last epoch, wherever it started.
        schedule_steps = steps * (self.epochs - state.schedule_start)
        optimizer = adam(state.learning_rate, schedule_steps, variables, keep_zeros=self.keep_zeros)
        if state.variables:
            _assign(optimizer, state.optimizer_variables)
            self.state = replace(state, variables=(), optimizer_variables=())
        self._divergence = None
        normalisations = ghost_batch_norm.normalisations(self.distillation_model.student)
        trainer(self.distillation_model, optimizer, self.dataset, self.collective).fit(
            first_epoch=state.epoch,
            epochs=self.epochs,
            first_data_epoch=self.first_epoch + state.epoch,
            callbacks=[
                ShareStatistics(normalisations, self.collective, self.dataset.share),  # first: validation needs them
                keras.callbacks.LambdaCallback(
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
        metrics = validate(self.student, self.teacher, self.dataset, self.collective)
        reason = divergence(metrics, self.state.best, chance=1.0 / max(2, self.student.output_shape[-1]))
        if reason:
            self._stop(reason)
            return
        row = {"epoch": self.first_epoch + self.state.epoch + 1, "loss": float(logs["loss"]), **_as_row(metrics)}
        row["learning_rate"] = self._learning_rate()
        self.state = replace(self.state, history=(*self.state.history, row))
        if (metrics.score, -metrics.kl) > (self.state.best.score, -self.state.best.kl):
            self.state = replace(self.state, best=metrics, best_weights=self.student.get_weights())
        if self.checkpoint is not None:
            current = replace(self.state, variables=_values(self.student), optimizer_variables=_values(optimizer))
            self.checkpoint.write(current)

    def _learning_rate(self) -> float:
        """Return the learning rate with which the current epoch started."""
        start = self.state.schedule_start
        return cosine_decay(self.state.learning_rate, (self.state.epoch - start) / (self.epochs - start))

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
) -> FineTuneState:
    """Train the student and leave it at its best epoch on the validation split, which may be the start.

    If an epoch diverges, training returns to the best weights so far and repeats it, and the epochs after it, with a
    new cosine schedule from a quarter of the learning rate with which the epoch started; at most `MAX_ROLLBACKS` times.

    Args:
        student: Its trainable layers are changed in place.
        teacher: The network whose logits the student learns; it is copied.
        dataset: The whole data; only the losses `cross_entropy` and `mixed` need labels.
        config: Loss, number of epochs and initial learning rate.
        initial: The student's validation metrics before fine-tuning.
        emit: Called with the progress of every step.
        first_epoch: The epoch of the data with which to start.
        collective: The workers that fine-tune the same student with the same arguments at the same time, each on its
            part of every batch; at most as many as the batch has split units (see `ghost_batch_norm.split_unit`).
        checkpoint: Where to resume from and to write the state after every epoch; None for neither.

    Returns:
        The final state: best metrics and weights, history, events.

    Raises:
        CollectiveAbortedError: Another worker failed.
        CollectiveLostError: Another worker was lost.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    student_logits, teacher_logits = logits_model(student, images), logits_model(graph.flatten(teacher), images)
    size = ghost_batch_norm.ghost_batch_size(dataset.batch_size)
    if not math.isfinite(initial.kl):  # the outputs are not finite: let any epoch count as better
        initial = Metrics(None if initial.accuracy is None else 0.0, 0.0, math.inf)
    unit = ghost_batch_norm.split_unit(student_logits, dataset.batch_size)
    start = FineTuneState(initial, config.fine_tune_learning_rate, best_weights=student.get_weights())
    return FineTuner(
        student=student,
        teacher=teacher,
        distillation_model=DistillationModel(student_logits, teacher_logits, make_loss(config), size),
        dataset=replace(dataset.shared(WorkerShare(collective.index, collective.size), unit), mixup=config.mixup),
        epochs=config.fine_tune_epochs,
        first_epoch=first_epoch,
        collective=collective,
        emit=emit,
        checkpoint=checkpoint,
        state=(checkpoint and checkpoint.read()) or start,
        keep_zeros=config.keep_zeros,
    ).run()


def divergence(metrics: Metrics, best: Metrics, chance: float) -> str | None:
    """Return why an epoch with these metrics diverged, or None if it did not.

    Args:
        metrics: After the epoch.
        best: The best metrics before it.
        chance: The score of a random guess.
    """
    if not math.isfinite(metrics.kl):
        return "the outputs are not finite numbers"
    lead = best.score - chance
    if lead > MIN_LEAD and metrics.score - chance < COLLAPSE * lead:
        name = "agreement" if metrics.accuracy is None else "accuracy"
        return f"the {name} fell from {best.score:.4f} to {metrics.score:.4f}"
    return None


def cosine_decay(initial: float, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] of the schedule of `loop.adam`."""
    return 0.5 * initial * (1.0 + math.cos(math.pi * progress))


def validate(student: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE) -> Metrics:
    """Return the student's metrics on the whole validation split, of which each worker evaluates its part."""
    return evaluate(teacher, [student], dataset.batches("validation"), dataset.labelled, collective)[0]


def _as_row(metrics: Metrics) -> dict[str, float]:
    row = {"val_accuracy": metrics.accuracy, "val_agreement": metrics.agreement, "val_kl": metrics.kl}
    return {name: value for name, value in row.items() if value is not None}


def _values(owner: keras.Model | keras.optimizers.Optimizer) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable) for variable in owner.variables]


def _assign(owner: keras.Model | keras.optimizers.Optimizer, values: Any) -> None:
    for variable, value in zip(owner.variables, values, strict=True):
        variable.assign(value)
