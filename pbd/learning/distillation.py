"""A student and its frozen teacher as one Keras model that learns the teacher's logits."""

from typing import Any

import keras

from pbd.learning import ghost_batch_norm
from pbd.learning.losses import Loss
from pbd.learning.metrics import class_scores, outputs_probabilities
from pbd.networks import augmentation, graph

SMALLEST_PROBABILITY = 1e-30
"""Smaller probabilities count as this one, so that their logarithm is finite in float32."""


class DistillationModel(keras.Model):
    """The student and its frozen teacher on the same images, with a distillation loss on their logits.

    Random layers that change pixels, before every layer with weights, are called once: both networks see the same
    images. Random layers after weights, such as dropout, act in the student only.

    Args:
        student: Maps images to logits.
        teacher: Maps images to logits, with the same augmentation layers; it runs in inference mode.
        loss: Compares the two.
        ghost_batch_size: Number of images that batch normalisation normalises together.
    """

    def __init__(self, student: keras.Model, teacher: keras.Model, loss: Loss, ghost_batch_size: int) -> None:
        super().__init__(name="distillation_model", dtype="float32")
        self._augmentation, self.student = augmentation.split_augmentation(student)
        _, self.teacher = augmentation.split_augmentation(teacher)
        self.teacher.trainable = False
        self._loss = loss
        self._ghost_batch_size = ghost_batch_size

    def call(self, images: Any, training: bool = False) -> list[Any]:
        if self._augmentation is not None:
            images = self._augmentation(images, training=training)
        teacher_logits = self.teacher(images, training=False)
        if training and ghost_batch_norm.normalisations(self.student):
            return [ghost_batch_norm.train(self.student, images, self._ghost_batch_size), teacher_logits]
        return [self.student(images, training=training), teacher_logits]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        student_logits, teacher_logits = y_pred
        return self._loss(y, student_logits, keras.ops.stop_gradient(teacher_logits))


def logits_model(model: keras.Model, images: Any) -> keras.Model:
    """Return a model that shares the layers of `model` and outputs logits.

    A final softmax or sigmoid is removed. A single logit becomes two (see `metrics.class_scores`). If the outputs for
    `images` are still probabilities, a logarithm is appended: it equals the logits up to a constant per image.
    """
    logits = graph.logits(model)
    if logits.output.shape[-1] == 1:
        return keras.Model(model.inputs[0], class_scores(logits.outputs[0]), name=logits.name)
    if graph.ends_in_logits(model) or not outputs_probabilities(logits, images):
        return logits
    logarithms = keras.ops.log(keras.ops.maximum(logits.outputs[0], SMALLEST_PROBABILITY))
    return keras.Model(model.inputs[0], logarithms, name=logits.name)
