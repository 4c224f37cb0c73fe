"""Fine-tune a student beside its frozen teacher: the losses, the best epoch, and what to do when it diverges."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from pbd import evaluation, ghost_batches, graph
from pbd.config import StudentConfig
from pbd.datasets import Dataset, Part
from pbd.evaluation import Marks
from pbd.fitting import Emit, ReportProgress, adam, trainer
from pbd.ghost_batches import ShareStatistics
from pbd.teamwork import ALONE, Team

COLLAPSED = 0.5
"""An epoch that ends with less than this share of the best lead over chance so far counts as diverged."""
SMALL_LEAD = 0.1
STEP_BACK = 0.25
"""What the learning rate is multiplied by after that."""
MOST_STEPS_BACK = 4

Loss = Callable[[Any, Any, Any], Any]
"""Maps (labels, student's logits, teacher's logits) to a loss."""


def kd_mse(labels: Any, student: Any, teacher: Any) -> Any:
    """Mean squared difference of the logits (Ba and Caruana 2014, arXiv:1312.6184)."""
    return keras.ops.mean(keras.ops.square(student - teacher))


def kd_kl(labels: Any, student: Any, teacher: Any, temperature: float) -> Any:
    """Divergence of the softened outputs, times the squared temperature (Hinton et al. 2015, arXiv:1503.02531)."""
    ops = keras.ops
    wanted, got = ops.log_softmax(teacher / temperature), ops.log_softmax(student / temperature)
    return temperature**2 * ops.mean(ops.sum(ops.exp(wanted) * (wanted - got), axis=-1))


def cross_entropy(labels: Any, student: Any, teacher: Any) -> Any:
    """Cross entropy against the labels."""
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, student, from_logits=True))


def make_loss(config: StudentConfig) -> Loss:
    """Return the loss that the settings ask for."""

    def softened(labels: Any, student: Any, teacher: Any) -> Any:
        return kd_kl(labels, student, teacher, config.temperature)

    def mixed(labels: Any, student: Any, teacher: Any) -> Any:
        weight = config.distillation_weight
        return weight * softened(labels, student, teacher) + (1.0 - weight) * cross_entropy(labels, student, teacher)

    return {"kd_mse": kd_mse, "kd_kl": softened, "cross_entropy": cross_entropy, "mixed": mixed}[config.fine_tune_loss]


class Tutoring(keras.Model):
    """The student and its frozen teacher on the same images, of which so many are normalised together."""

    def __init__(self, student: keras.Model, teacher: keras.Model, loss: Loss, normalised_together: int) -> None:
        super().__init__(name="tutoring")
        self.student = student
        self.teacher = teacher
        self.teacher.trainable = False
        self._loss = loss
        self._size = normalised_together

    def call(self, images: Any, training: bool = False) -> list[Any]:
        teacher = self.teacher(images, training=False)
        if training and ghost_batches.normalisations(self.student):
            return [ghost_batches.train(self.student, images, self._size), teacher]
        return [self.student(images, training=training), teacher]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        student, teacher = y_pred
        return self._loss(y, student, keras.ops.stop_gradient(teacher))


class Examiner(keras.callbacks.Callback):
    """Marks the student after every epoch, keeps its best weights, and stops training that diverges.

    Args:
        examine: returns the student's marks on the validation split.
        best: its marks before training; no epoch is kept that is worse.
    """

    def __init__(self, student: keras.Model, examine: Callable[[], Marks], best: Marks) -> None:
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
            self.diverged = f"the {judged} fell from {self.best.measure:.4f} to {marks.measure:.4f}"
        if self.diverged:
            self.model.stop_training = True
            return
        self.rows.append({"epoch": epoch + 1, "loss": float((logs or {})["loss"]), **_as_row(marks)})
        if (marks.measure, -marks.kl) > (self.best.measure, -self.best.kl):
            self.best, self.weights = marks, self._student.get_weights()

    def _collapsed(self, marks: Marks) -> bool:
        """Return whether the lead over chance is lost; a small one may come and go."""
        chance = 1.0 / self._student.output_shape[-1]
        lead = self.best.measure - chance
        return lead > SMALL_LEAD and marks.measure - chance < COLLAPSED * lead


def _as_row(marks: Marks) -> dict[str, float]:
    known = {"val_accuracy": marks.accuracy, "val_agreement": marks.agreement, "val_kl": marks.kl}
    return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Tuning:
    """What came of fine-tuning a student."""

    best: Marks
    """Of the weights that it was left with."""
    history: tuple[dict[str, float], ...] = ()
    """Epoch, loss, marks and the learning rate it began with, a row per epoch that was not taken back."""
    story: tuple[str, ...] = ()
    """A line for each time that training diverged and was stepped back."""


def fine_tune(
    student: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    config: StudentConfig,
    before: Marks,
    emit: Emit,
    first_epoch: int = 0,
    team: Team = ALONE,
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
        team: those who tune the same student with the same arguments at the same time, each on its part of every batch;
            no more than the batch has units (see `ghost_batches.unit`).

    Raises:
        BrokenTeamError: another worker gave up.
        LostTeamError: another worker was lost.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    pupil = logits_model(student, images)
    size = ghost_batches.part_size(dataset.batch_size)
    tutoring = Tutoring(pupil, logits_model(graph.flatten(teacher), images), make_loss(config), size)
    if not math.isfinite(before.kl):  # anything is better
        before = Marks(None if before.accuracy is None else 0.0, 0.0, math.inf)
    mine = dataset.shared(Part(team.index, team.size), ghost_batches.unit(pupil, dataset.batch_size))
    statistics = ShareStatistics(ghost_batches.normalisations(pupil), team, mine.share)
    tuning, rate, epoch = Tuning(before), config.fine_tune_learning_rate, 0
    for steps_back in range(1 + MOST_STEPS_BACK):
        watch = Examiner(student, lambda: examine(student, teacher, mine, team), tuning.best)
        left = config.fine_tune_epochs - epoch
        trainer(tutoring, adam(rate, mine.steps_per_epoch * left), mine, team).fit(
            mine.training_batches(first_epoch + epoch, first_epoch + config.fine_tune_epochs),
            first_epoch=epoch,
            epochs=config.fine_tune_epochs,
            steps=mine.steps_per_epoch,
            callbacks=[statistics, watch, ReportProgress(emit, "fine-tuning")],
        )
        student.set_weights(watch.weights)
        rows = tuple(
            row | {"epoch": first_epoch + row["epoch"], "learning_rate": cosine(rate, number / left)}
            for number, row in enumerate(watch.rows)
        )
        tuning = Tuning(watch.best, tuning.history + rows, tuning.story)
        if not watch.diverged:
            break
        epoch += len(rows)
        reached = cosine(rate, len(rows) / left)
        line = f"epoch {first_epoch + epoch + 1} diverged at learning rate {reached:g} ({watch.diverged}): taken back"
        rate = STEP_BACK * reached
        then = f"{rate:g} from there" if steps_back < MOST_STEPS_BACK else "and given up"
        tuning = replace(tuning, story=(*tuning.story, f"{line}, {then}"))
    return tuning


def cosine(rate: float, done: float) -> float:
    """Return the learning rate when this share of its schedule is done (see `fitting.adam`)."""
    return 0.5 * rate * (1.0 + math.cos(math.pi * done))


def examine(student: keras.Model, teacher: keras.Model, dataset: Dataset, team: Team = ALONE) -> Marks:
    """Return the student's marks on the validation split, all its parts if it is shared."""
    return evaluation.mark(teacher, [student], dataset.batches("validation"), dataset.labelled, team)[0]


def logits_model(model: keras.Model, images: Any) -> keras.Model:
    """Return the model, on the same layers, with its logits as its output.

    A final softmax is left out; where probabilities come out all the same, it is their logarithms, which are logits
    but for a constant of each image.
    """
    before_softmax = graph.logits(model)
    if not evaluation.ends_in_probabilities(before_softmax, images):
        return before_softmax
    smallest = 1e-30  # of a float32
    logarithms = keras.ops.log(keras.ops.maximum(before_softmax.outputs[0], smallest))
    return keras.Model(model.inputs, logarithms, name=before_softmax.name)
