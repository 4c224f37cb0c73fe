"""Losses of `keras.distillation` as settings of pbd, which travel to workers and name checkpoints."""

import json
from typing import Any

import keras
import numpy as np

from pbd.config import FINE_TUNE_LOSSES
from pbd.config.features import LOGITS, Feature
from pbd.config.values import Section
from pbd.errors import UsageError

ON_FEATURES = (
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.Huber,
    keras.losses.LogCosh,
    keras.losses.CosineSimilarity,
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.huber,
    keras.losses.log_cosh,
    keras.losses.cosine_similarity,
)
"""Losses that compare any two tensors of one shape; the others take their first argument as labels."""
_DIVERGENCES = (keras.losses.KLDivergence, keras.losses.kl_divergence)
_SQUARES = (keras.losses.MeanSquaredError, keras.losses.mean_squared_error)


class NamedLosses(Section):
    """The settings of a step whose losses between logits are those of pbd, by name."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, keras.distillation.LogitsDistillation):
                raise UsageError(
                    f"{name} must be the name of a loss of pbd. Received: {_name(value)}. "
                    f"Give one of {', '.join(FINE_TUNE_LOSSES)}."
                )
        super().__post_init__()


def read(loss: Any, temperature: Any) -> tuple[Any, Any]:
    """Return the loss and the temperature of a step, with a loss of pbd in place of a `LogitsDistillation`.

    Raises:
        UsageError: the `LogitsDistillation` compares the logits in another way than those of pbd.
    """
    return of_logits(loss) if isinstance(loss, keras.distillation.LogitsDistillation) else (loss, temperature)


def of_logits(loss: keras.distillation.LogitsDistillation) -> tuple[str, float]:
    """Return the loss of pbd and the temperature in place of one of Keras.

    The KL divergence becomes `mixed`. pbd computes it itself from logarithms: Keras 3.15 clips probabilities, and the
    default loss, the text "kl_divergence", it applies to logits. The squared error becomes `kd_mse`, without the
    temperature, which would only scale it.

    Raises:
        UsageError: it compares the logits in another way.
    """
    if _is_one_of(loss.loss, _DIVERGENCES):
        return "mixed", float(loss.temperature)
    if _is_one_of(loss.loss, _SQUARES):
        return "kd_mse", float(loss.temperature)
    raise UsageError(
        f"a LogitsDistillation compares logits by kl_divergence or mse. Received: {_name(loss.loss)}. "
        "Give one of them, or a loss of pbd such as kd_kl."
    )


def of_features(loss: keras.distillation.FeatureDistillation) -> Feature:
    """Return the loss of pbd in place of one of Keras, whose layers without a name are the logits.

    Raises:
        UsageError: it has several losses, one that takes its first argument as labels, or settings that Keras does not
            serialise.
    """
    if not _is_one_of(loss.loss, ON_FEATURES):
        names = ", ".join(loss.__name__ for loss in ON_FEATURES if isinstance(loss, type))
        raise UsageError(
            f"a FeatureDistillation compares one pair of layers by one of {names}. Received: {_name(loss.loss)}. "
            "Give one of them for each pair."
        )
    serialized = json.dumps(keras.losses.serialize(loss.loss))
    if not _agree(loss.loss, keras.losses.deserialize(json.loads(serialized))):
        raise UsageError(
            f"workers get a loss as Keras serialises it. Received: {_name(loss.loss)}, of which Keras loses a setting. "
            "Give it with the default settings."
        )
    student, teacher = loss.student_layer_name or LOGITS, loss.teacher_layer_name or LOGITS
    return Feature("keras", student, teacher, 1.0, serialized)


def _is_one_of(loss: Any, kinds: tuple[Any, ...]) -> bool:
    return any(isinstance(loss, kind) if isinstance(kind, type) else loss is kind for kind in kinds)


def _agree(loss: Any, copy: Any) -> bool:
    first, second = np.random.default_rng(0).normal(0.0, 2.0, (2, 4, 8)).astype("float32")
    expected, value = (keras.ops.convert_to_numpy(each(first, second)) for each in (loss, copy))
    return bool(np.allclose(value, expected, rtol=1e-5))


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)
