"""Losses between layers as settings of a step: how they are written, and whether both networks have the layers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import keras

from pbd.compression import keras_losses
from pbd.config import Feature
from pbd.data import Dataset
from pbd.errors import UsageError
from pbd.learning import feature_terms, ghost_batch_norm
from pbd.learning.distillation import logits_model


def read(features: Any) -> tuple[Feature, ...]:
    """Return the losses that a step is given.

    Args:
        features: one or several of `Feature`, its fields as a mapping, or `keras.distillation.FeatureDistillation`.

    Raises:
        UsageError: one is something else, or a field of it is wrong.
    """
    return tuple(map(_feature, features if isinstance(features, list | tuple) else [features]))


def _feature(value: Any) -> Feature:
    if isinstance(value, keras.distillation.FeatureDistillation):
        return keras_losses.of_features(value)
    if isinstance(value, Feature):
        return value
    names = [field.name for field in fields(Feature)]
    if not isinstance(value, Mapping) or not {"loss", "student", "teacher"} <= set(value) <= set(names):
        raise UsageError(
            f'a feature is a mapping such as {{loss = "at", student = "conv3_relu", teacher = "relu_12"}}. '
            f"Received: {value!r}. Give loss, student, teacher, and perhaps weight."
        )
    return Feature(**value)


def check(features: tuple[Feature, ...], student: keras.Model, teacher: keras.Model, dataset: Dataset) -> None:
    """Check that both networks have the layers of the losses, before workers begin.

    Args:
        features: the losses.
        student: flat.
        teacher: flat.
        dataset: the images.

    Raises:
        UsageError: a layer is missing, or its outputs do not suit the loss.
    """
    if features:
        images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
        size = ghost_batch_norm.ghost_batch_size(dataset.batch_size)
        feature_terms.terms(features, logits_model(student, images), logits_model(teacher, images), size)
