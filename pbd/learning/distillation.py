"""A student and its frozen teacher as one Keras model that learns the teacher's logits and features."""

from collections.abc import Sequence
from typing import Any

import keras

from pbd.config import DistillationConfig, Feature
from pbd.data import Dataset
from pbd.learning import feature_terms, ghost_batch_norm
from pbd.learning.drawn_teacher import DrawnTeacher, members
from pbd.learning.losses import Loss
from pbd.learning.metrics import class_scores, outputs_probabilities
from pbd.networks import augmentation, folding, graph, heads, precision
from pbd.system import backend

SMALLEST_PROBABILITY = 1e-30
"""Smaller probabilities count as this one, so that their logarithm is finite in float32."""


class DistillationModel(keras.Model):
    """The student and its frozen teacher on the same images, with a distillation loss on their logits.

    Random layers that change pixels, before every layer with weights, are called once: both networks see the same
    images. Random layers after weights, such as dropout, act in the student only. If student and teacher begin with
    other layers, each computes its own from the images, and random layers on pixels act in the student only.

    Args:
        student: Maps images to logits.
        teacher: Maps images to logits; it runs in inference mode. With a `DrawnTeacher`, random layers on pixels act in
            the student only.
        loss: Compares the two.
        ghost_batch_size: Number of images that batch normalisation normalises together, and that are compared with
            one another by losses that compare images.
        features: Losses between layers, which are added.

    Raises:
        UsageError: A layer of a feature is missing, or its outputs do not suit the loss.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | DrawnTeacher,
        loss: Loss,
        ghost_batch_size: int,
        features: Sequence[Feature] = (),
    ) -> None:
        super().__init__(name="distillation_model", dtype="float32")
        self._augmentation, self.student, self.teacher = _split(student, teacher)
        self._terms = feature_terms.terms(features, self.student, self.teacher, ghost_batch_size)
        if features:
            of_student = [feature.student for feature in features]
            of_teacher = [feature.teacher for feature in features]
            self.student = feature_terms.with_features(self.student, "student", of_student)
            self.teacher = feature_terms.with_features(self.teacher, "teacher", of_teacher)
        self.teacher.trainable = False
        self._loss = loss
        self._ghost_batch_size = ghost_batch_size
        self._table: tuple[Any, Any] | None = None

    @property
    def can_use_table(self) -> bool:
        """Whether the teacher's logits alone are compared, and depend on nothing but the images."""
        return self._augmentation is None and not self._terms and not isinstance(self.teacher, DrawnTeacher)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the members that teach in an epoch of the data, if the teacher is a `DrawnTeacher`."""
        if isinstance(self.teacher, DrawnTeacher):
            self.teacher.draw(epoch)

    def use_table(self, labels: Any, logits: Any) -> None:
        """Look labels and the teacher's logits up, instead of computing them: from now on `y` holds rows of the table.

        Args:
            labels: Of all training images, (n,) int32.
            logits: Of the teacher for all training images, (n, classes) float32.
        """
        kinds = (labels, "int32"), (logits, "float32")
        self._table = tuple(keras.Variable(values, dtype=kind, trainable=False) for values, kind in kinds)

    @property
    def projector_variables(self) -> list[Any]:
        """The variables of the projectors of the features."""
        return [variable for term in self._terms for variable in term.variables]

    def call(self, images: Any, training: bool = False) -> list[Any]:
        if self._augmentation is not None:
            images = self._augmentation(images, training=training)
        teacher_outputs = [] if self._table else [self.teacher(images, training=False)]
        if training and ghost_batch_norm.normalisations(self.student):
            student_outputs = ghost_batch_norm.train(self.student, images, self._ghost_batch_size)
        else:
            student_outputs = self.student(images, training=training)
        if not self._terms:
            return [student_outputs, *teacher_outputs]
        (student_logits, *students), ((teacher_logits, *teachers),) = student_outputs, teacher_outputs
        compared = [term(*maps) for term, *maps in zip(self._terms, students, teachers, strict=True)]
        return [student_logits, teacher_logits, *compared]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        y_pred = keras.tree.map_structure(lambda outputs: keras.ops.cast(outputs, "float32"), y_pred)
        if self._table:
            y, teacher_logits = (keras.ops.take(values, y, axis=0) for values in self._table)
            y_pred = [*y_pred, teacher_logits]
        student_logits, teacher_logits, *compared = y_pred
        loss = self._loss(y, student_logits, keras.ops.stop_gradient(teacher_logits))
        for term, maps in zip(self._terms, compared, strict=True):
            loss = loss + term.value(maps)
        return loss


def _split(
    student: keras.Model, teacher: keras.Model | DrawnTeacher
) -> tuple[keras.Model | None, keras.Model, keras.Model | DrawnTeacher]:
    """Return the augmentation that both begin with, if they do, and the networks after it."""
    if isinstance(teacher, DrawnTeacher):
        return None, student, teacher
    (shared, student_rest), (other, teacher_rest) = map(augmentation.split_augmentation, (student, teacher))
    if shared is None or other is None or _layers(shared) != _layers(other):
        return None, student, teacher
    return shared, student_rest, teacher_rest


def _layers(model: keras.Model) -> list[tuple[str, str]]:
    """Return what the layers of a model compute: their kinds, and their settings and weights as texts."""
    return [(type(layer).__name__, _settings(layer)) for layer in model.layers]


def _settings(layer: keras.layers.Layer) -> str:
    config = {name: value for name, value in layer.get_config().items() if name not in ("name", "dtype", "seed")}
    return repr((sorted(config.items()), [weight.tolist() for weight in layer.get_weights()]))


def logits_model(model: keras.Model, images: Any) -> keras.Model:
    """Return a model that shares the layers of `model` and outputs logits.

    A final softmax or sigmoid is removed. A single logit becomes two (see `metrics.class_scores`). If the outputs for
    `images` are still probabilities, a logarithm is appended: it equals the logits up to a constant per image.
    """
    logits = heads.remove(model)
    if logits.output.shape[-1] == 1:
        return keras.Model(model.inputs[0], class_scores(logits.outputs[0]), name=logits.name)
    if heads.ends_in_logits(model) or not outputs_probabilities(logits, images):
        return logits
    logarithms = keras.ops.log(keras.ops.maximum(logits.outputs[0], SMALLEST_PROBABILITY))
    return keras.Model(model.inputs[0], logarithms, name=logits.name)


def teacher_logits(
    teacher: keras.Model, dataset: Dataset, distillation: DistillationConfig, training_precision: str, images: Any
) -> keras.Model | DrawnTeacher:
    """Return a model of the teacher's logits for training; if members are drawn, of those of one in each step.

    Args:
        teacher: It is copied. It may be an ensemble, of which `distillation` draws a member.
        dataset: Has the number of steps and the seed, from which members are drawn.
        distillation: What the student learns from; features name layers of the teacher, which are not folded then.
        training_precision: float32, or bfloat16: what the teacher computes in, except for its logits.
        images: A batch (see `logits_model`).

    Raises:
        UsageError: The teacher is no ensemble, of which `distillation` draws a member.
    """

    def logits(network: keras.Model) -> keras.Model:
        if not distillation.features:  # which may name a normalisation
            network = folding.fold_all(network, backend.name() == "tensorflow")  # fewer operations
        return logits_model(precision.mixed_classifier(network, training_precision), images)

    flat = graph.flatten(teacher)
    if not distillation.draws_member:
        return logits(flat)
    return DrawnTeacher([logits(member) for member in members(flat)], dataset.steps_per_epoch, dataset.seed)
