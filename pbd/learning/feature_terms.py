"""Losses between layers of a student and of its teacher, with the layers that bring features of both to one shape.

These projectors are trained with the student and are no part of it afterwards.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from pbd.config.features import LOGITS, Feature
from pbd.data.splitting import derived_seed
from pbd.errors import UsageError, unknown_name
from pbd.learning.losses import feature_maps, relations
from pbd.networks.keras_internals import calls

EMBEDDING = 128
"""Values of an embedding of CRD, as in Tian et al. 2020 (arXiv:1910.10699)."""


class FeatureTerm(keras.layers.Layer):
    """One loss between layers, with its projectors.

    * `mse`, `keras`, `fsp`: if the numbers of channels differ, a 1x1 convolution without bias (for vectors, a dense
      layer) maps the student's features to the teacher's channels.
    * `crd`: a dense layer on the features of either network, averaged over the positions, computes an embedding.
    * `at`, `sp`, `pkt`: none; these losses compare features of any number of channels.

    Initial weights depend on the names of the layers alone, so that they are the same on all workers.

    Args:
        feature: the loss and its layers.
        students: shapes of the student's features, one or two, `(batch, height, width, channels)` or `(batch, values)`.
        teachers: the same of the teacher's.
        images_together: images of a batch that are compared with one another.

    Raises:
        UsageError: the loss does not compare features of these shapes, or it compares images and there is only one.
    """

    def __init__(
        self,
        feature: Feature,
        students: Sequence[tuple[int | None, ...]],
        teachers: Sequence[tuple[int | None, ...]],
        images_together: int,
    ) -> None:
        super().__init__(dtype="float32")
        if feature.compares_images and images_together < 2:
            raise UsageError(
                f"the feature loss {feature.loss} compares images. Received: batches of 1. Give --batch-size 2."
            )
        _check_shapes(feature, students, teachers)
        self._feature, self._images_together = feature, images_together
        self._keras_loss: Any = None
        if feature.keras_loss is not None:
            self._keras_loss = keras.losses.deserialize(json.loads(feature.keras_loss))
        self.student_projectors = [
            self._projector(student, teacher) for student, teacher in zip(students, teachers, strict=True)
        ]
        self.teacher_projectors = (
            [self._projector(teacher, None) for teacher in teachers] if feature.loss == "crd" else []
        )
        self.built = True

    def _projector(self, shape: tuple[int | None, ...], target: tuple[int | None, ...] | None) -> Any:
        """Return the layer that maps features of one shape to the channels of another, or `None` if none is needed."""
        loss, seed = self._feature.loss, derived_seed(0, f"{self._feature.seed} {shape} {target}")
        initial = keras.initializers.GlorotUniform(seed)
        layer: Any = None
        if loss == "crd":
            layer = keras.layers.Dense(EMBEDDING, kernel_initializer=initial, dtype="float32")
        elif loss in ("mse", "keras", "fsp") and target is not None and shape[-1] != target[-1]:
            options = {"use_bias": False, "kernel_initializer": initial, "dtype": "float32"}
            layer = keras.layers.Conv2D(target[-1], 1, **options) if len(shape) == 4 else None
            layer = layer or keras.layers.Dense(target[-1], **options)
        if layer is not None:
            layer.build((None, shape[-1]) if loss == "crd" else shape)
        return layer

    def call(self, students: Sequence[Any], teachers: Sequence[Any]) -> list[list[Any]]:
        """Return the features that `value` compares, of the student and of the teacher."""
        students, teachers = list(students), list(map(keras.ops.stop_gradient, teachers))
        if self._feature.loss == "crd":
            students, teachers = ([relations.position_mean(x) for x in each] for each in (students, teachers))
            teachers = [layer(x) for layer, x in zip(self.teacher_projectors, teachers, strict=True)]
        elif self._feature.loss in ("mse", "keras"):
            student, teacher = feature_maps.same_size(students[0], teachers[0])
            students, teachers = [student], [teacher]
        students = [
            x if layer is None else layer(x) for layer, x in zip(self.student_projectors, students, strict=True)
        ]
        return [students, teachers]

    def value(self, features: Sequence[Sequence[Any]]) -> Any:
        """Return the weighted loss of a batch.

        Args:
            features: What `call` returned.
        """
        students, teachers = features
        return self._feature.factor * self._loss(students, teachers)

    def _loss(self, students: Sequence[Any], teachers: Sequence[Any]) -> Any:
        loss, (student, teacher), size = self._feature.loss, (students[0], teachers[0]), self._images_together
        if loss == "fsp":
            return feature_maps.solution_flow((students[0], students[1]), (teachers[0], teachers[1]))
        if loss == "keras":
            return keras.ops.mean(self._keras_loss(teacher, student))
        if loss in ("at", "mse"):
            return {"at": feature_maps.attention_transfer, "mse": feature_maps.hint}[loss](student, teacher)
        compare: Any = {
            "sp": relations.similarity_preserving,
            "pkt": relations.probabilistic_transfer,
            "crd": relations.contrastive,
        }[loss]
        return compare(student, teacher, size)


def _check_shapes(feature: Feature, students: Sequence[Any], teachers: Sequence[Any]) -> None:
    for student, teacher in zip(students, teachers, strict=True):
        ranks, maps_only = {len(student), len(teacher)}, feature.loss in ("at", "fsp")
        fits = ranks == {4} if maps_only else ranks <= {2, 4}
        if feature.loss in ("mse", "keras"):
            fits = fits and len(ranks) == 1
        if not fits or None in (*student[1:], *teacher[1:]):
            rule = "takes maps of height, width and channels" if maps_only else "takes two maps or two vectors"
            raise UsageError(
                f"the feature loss {feature.loss} {rule}. Received: layers {', '.join(feature.student)} "
                f"{student[1:]} and {', '.join(feature.teacher)} {teacher[1:]}. Choose other layers."
            )


def terms(
    features: Iterable[Feature], student: keras.Model, teacher: keras.Model, images_together: int
) -> list[FeatureTerm]:
    """Return the terms of all losses, in order.

    Args:
        features: the losses and their layers.
        student: flat, maps images to logits.
        teacher: the same.
        images_together: images of a batch that are compared with one another.

    Raises:
        UsageError: there is no such layer, or its outputs do not suit the loss.
    """
    return [
        FeatureTerm(
            feature,
            [tensor.shape for tensor in outputs(student, "student", feature.student)],
            [tensor.shape for tensor in outputs(teacher, "teacher", feature.teacher)],
            images_together,
        )
        for feature in features
    ]


def with_features(model: keras.Model, whose: str, names: Iterable[Sequence[str]]) -> keras.Model:
    """Return the model that also outputs features: `[logits, [features of the first term], ...]`, sharing layers.

    Args:
        model: flat, maps images to logits.
        whose: student or teacher, for messages.
        names: the names of the layers of each term.
    """
    return keras.Model(model.input, [model.outputs[0], *(outputs(model, whose, each) for each in names)])


def outputs(model: keras.Model, whose: str, names: Iterable[str]) -> list[Any]:
    """Return the output tensors of the layers of these names.

    Raises:
        UsageError: there is no such layer, or it has several outputs.
    """
    tensors: dict[str, list[Any]] = {LOGITS: [model.outputs[0]]}
    for operation, _, results in calls(model):
        tensors.setdefault(operation.name, []).extend(results)
    for name in names:
        if name not in tensors:
            raise UsageError(unknown_name(f"layer of the {whose}", name, filter(None, tensors)))
        if len(tensors[name]) != 1:
            raise UsageError(
                f"a layer of the {whose} must have one output. Received: {name} with {len(tensors[name])}. "
                "Choose another layer."
            )
    return [tensors[name][0] for name in names]
