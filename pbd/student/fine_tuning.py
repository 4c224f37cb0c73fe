"""Fine-tune a student beside its frozen teacher: the best epoch, and what to do when it diverges."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from pbd.collective import SINGLE, Collective
from pbd.config import StudentConfig
from pbd.data import Dataset, WorkerShare
from pbd.learning import ghost_batch_norm, metrics
from pbd.learning.ghost_batch_norm import ShareStatistics
from pbd.learning.loop import ReportProgress, adam, trainer
from pbd.learning.losses import Loss, make_loss
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.records import ProgressCallback
from pbd.student.checkpoints import Attempt, Checkpoint, FineTuneState, NoCheckpoint, Tuning

COLLAPSED = 0.5
"""An epoch that ends with less than this share of the best lead over chance so far counts as diverged."""
SMALL_LEAD = 0.1
STEP_BACK = 0.25
"""What the learning rate is multiplied by after that."""
MOST_STEPS_BACK = 4


class DistillationModel(keras.Model):
    """The student and its frozen teacher on the same images, of which so many are normalised together."""

    def __init__(self, student: keras.Model, teacher: keras.Model, loss: Loss, normalised_together: int) -> None:
        super().__init__(name="distillation_model")
        self.student = student
        self.teacher = teacher
        self.teacher.trainable = False
        self._loss = loss
        self._size = normalised_together

    def call(self, images: Any, training: bool = False) -> list[Any]:
        teacher = self.teacher(images, training=False)
        if training and ghost_batch_norm.normalisations(self.student):
            return [ghost_batch_norm.train(self.student, images, self._size), teacher]
        return [self.student(images, training=training), teacher]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        student, teacher = y_pred
        return self._loss(y, student, keras.ops.stop_gradient(teacher))


class ValidationCallback(keras.callbacks.Callback):
    """Metrics the student after every epoch, keeps its best weights, and stops training that diverges.

    Args:
        examine: returns the student's marks on the validation split.
        best: its marks before training; no epoch is kept that is worse.
    """

    def __init__(self, student: keras.Model, examine: Callable[[], Metrics], best: Metrics) -> None:
        super().__init__()
        self._student, self._examine = student, examine
        self.best, self.weights = best, student.get_weights()
        self.diverged: str | None = None
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not math.isfinite(float((logs or {}).get("loss", 0.0))):
            self.diverged = "the loss is not a finite number"
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.diverged:
            return
        marks = self._examine()
        if not math.isfinite(marks.kl):
            self.diverged = "its outputs are no finite numbers"
        elif self._collapsed(marks):
            judged = "agreement" if marks.accuracy is None else "accuracy"
            self.diverged = f"the {judged} fell from {self.best.score:.4f} to {marks.score:.4f}"
        if self.diverged:
            self.model.stop_training = True
            return
        self.rows.append({"epoch": epoch + 1, "loss": float((logs or {})["loss"]), **_as_row(marks)})
        if (marks.score, -marks.kl) > (self.best.score, -self.best.kl):
            self.best, self.weights = marks, self._student.get_weights()

    def _collapsed(self, marks: Metrics) -> bool:
        """Return whether the lead over chance is lost; a small one may come and go."""
        chance = 1.0 / self._student.output_shape[-1]
        lead = self.best.score - chance
        return lead > SMALL_LEAD and marks.score - chance < COLLAPSED * lead


def _as_row(marks: Metrics) -> dict[str, float]:
    known = {"val_accuracy": marks.accuracy, "val_agreement": marks.agreement, "val_kl": marks.kl}
    return {name: value for name, value in known.items() if value is not None}


class KeepPlace(keras.callbacks.Callback):
    """Keeps, after every epoch that did not diverge, all that is needed to go on from there."""

    def __init__(
        self, checkpoint: Checkpoint, attempt: Attempt, watch: ValidationCallback, tuned: "_TunedVariables"
    ) -> None:
        super().__init__()
        self._checkpoint, self._attempt, self._watch, self._tuned = checkpoint, attempt, watch, tuned

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        watch, tuned = self._watch, self._tuned
        if not watch.diverged:
            now = tuned.student, tuned.optimizer
            variables, optimizer = ([keras.ops.convert_to_numpy(v) for v in each.variables] for each in now)
            rows = tuple(watch.rows)
            self._checkpoint.write(FineTuneState(self._attempt, watch.best, rows, watch.weights, variables, optimizer))


@dataclass
class _TunedVariables:
    """What changes while a student is tuned."""

    student: keras.Model
    optimizer: keras.optimizers.Optimizer

    def put_back(self, place: FineTuneState) -> None:
        """Make everything as it was there."""
        for variables, values in ((self.student, place.variables), (self.optimizer, place.optimizer)):
            for variable, value in zip(variables.variables, values, strict=True):
                variable.assign(value)


@dataclass
class FineTuner:
    """Trains a student beside its teacher."""

    distillation_model: DistillationModel
    student: keras.Model
    dataset: Dataset
    """This worker's part of it."""
    epochs: int
    first_epoch: int
    collective: Collective
    examine: Callable[[], Metrics]
    statistics: ShareStatistics
    emit: ProgressCallback
    checkpoint: Checkpoint

    def train(self, attempt: Attempt, place: FineTuneState | None) -> ValidationCallback:
        """Train for what is left of an attempt, from its beginning or from a place in it; return who watched."""
        steps = self.dataset.steps_per_epoch
        weights = self.distillation_model.trainable_variables
        tuned = _TunedVariables(self.student, adam(attempt.rate, steps * (self.epochs - attempt.epoch), weights))
        watch = ValidationCallback(self.student, self.examine, attempt.before.best)
        if place is not None:
            tuned.put_back(place)
            watch.best, watch.weights, watch.rows = place.best, list(place.best_weights), list(place.rows)
        begin = attempt.epoch + len(watch.rows)
        if begin < self.epochs:
            keep = KeepPlace(self.checkpoint, attempt, watch, tuned)
            trainer(self.distillation_model, tuned.optimizer, self.dataset, self.collective).fit(
                self.dataset.training_batches(self.first_epoch + begin, self.first_epoch + self.epochs),
                first_epoch=begin,
                epochs=self.epochs,
                steps=steps,
                callbacks=[self.statistics, watch, keep, ReportProgress(self.emit, "fine-tuning")],
            )
        return watch

    def outcome(self, attempt: Attempt, watch: ValidationCallback) -> Tuning:
        """Return what came of an attempt, and of those before it."""
        left = self.epochs - attempt.epoch
        rows = tuple(
            row | {"epoch": self.first_epoch + row["epoch"], "learning_rate": cosine(attempt.rate, number / left)}
            for number, row in enumerate(watch.rows)
        )
        return replace(attempt.before, best=watch.best, history=attempt.before.history + rows)

    def step_back(self, attempt: Attempt, watch: ValidationCallback) -> Attempt:
        """Return the attempt that follows one that diverged."""
        done = self.outcome(attempt, watch)
        epoch, left = len(done.history), self.epochs - attempt.epoch
        reached = cosine(attempt.rate, len(watch.rows) / left)
        again = Attempt(done, STEP_BACK * reached, attempt.number + 1)
        then = f"{again.rate:g} from there" if again.number <= MOST_STEPS_BACK else "and given up"
        number = self.first_epoch + epoch + 1
        line = f"epoch {number} diverged at learning rate {reached:g} ({watch.diverged}): taken back, {then}"
        return replace(again, before=replace(done, events=(*done.events, line)))


def fine_tune(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    config: StudentConfig,
    before: Metrics,
    emit: ProgressCallback,
    first_epoch: int = 0,
    collective: Collective = SINGLE,
    checkpoint: Checkpoint | None = None,
) -> Tuning:
    """Train the student and leave it at its best epoch on the validation split, which may be the start.

    An epoch that diverges is taken back: the best weights so far are put back, and what is left is done with a new
    cosine from a quarter of the learning rate that the epoch began with.

    Args:
        student: its trainable layers are tuned, in place.
        teacher: the network whose outputs it learns; a copy is made.
        dataset: labels are needed by the losses `cross_entropy` and `mixed` alone.
        config: loss, epochs, first learning rate.
        before: the student's marks as it comes.
        emit: told of every step.
        first_epoch: which epoch of the data to begin with.
        collective: the workers that tune the same student with the same arguments at the same time, each on its part
            of every batch; at most as many as the batch has units (see `ghost_batch_norm.split_unit`).
        checkpoint: where an interrupted tuning of this student may be taken up, and kept for the next time.

    Raises:
        CollectiveAbortedError: another worker gave up.
        CollectiveLostError: another worker was lost.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    student_logits = logits_model(student, images)
    size = ghost_batch_norm.ghost_batch_size(dataset.batch_size)
    if not math.isfinite(before.kl):  # anything is better
        before = Metrics(None if before.accuracy is None else 0.0, 0.0, math.inf)
    mine = dataset.shared(
        WorkerShare(collective.index, collective.size), ghost_batch_norm.split_unit(student_logits, dataset.batch_size)
    )
    tutor = FineTuner(
        distillation_model=DistillationModel(
            student_logits, logits_model(graph.flatten(teacher), images), make_loss(config), size
        ),
        student=student,
        dataset=mine,
        epochs=config.fine_tune_epochs,
        first_epoch=first_epoch,
        collective=collective,
        examine=lambda: examine(student, teacher, mine, collective),
        statistics=ShareStatistics(ghost_batch_norm.normalisations(student_logits), collective, mine.share),
        emit=emit,
        checkpoint=checkpoint or NoCheckpoint(),
    )
    place = tutor.checkpoint.read()
    attempt = place.attempt if place else Attempt(Tuning(before), config.fine_tune_learning_rate)
    while attempt.number <= MOST_STEPS_BACK:
        watch = tutor.train(attempt, place)
        student.set_weights(watch.weights)
        if not watch.diverged:
            return tutor.outcome(attempt, watch)
        attempt, place = tutor.step_back(attempt, watch), None
    return attempt.before


def cosine(rate: float, done: float) -> float:
    """Return the learning rate when this share of its schedule is done (see `fitting.adam`)."""
    return 0.5 * rate * (1.0 + math.cos(math.pi * done))


def examine(student: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE) -> Metrics:
    """Return the student's marks on the validation split, all its parts if it is shared."""
    return metrics.evaluate(teacher, [student], dataset.batches("validation"), dataset.labelled, collective)[0]


def logits_model(model: keras.Model, images: Any) -> keras.Model:
    """Return the model, on the same layers, with its logits as its output.

    A final softmax is left out; where probabilities come out all the same, it is their logarithms, which are logits
    but for a constant of each image.
    """
    before_softmax = graph.logits(model)
    if not metrics.ends_in_probabilities(before_softmax, images):
        return before_softmax
    smallest = 1e-30  # of a float32
    logarithms = keras.ops.log(keras.ops.maximum(before_softmax.outputs[0], smallest))
    return keras.Model(model.inputs, logarithms, name=before_softmax.name)
