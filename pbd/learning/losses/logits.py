"""Losses of a student on its teacher's logits and on the labels.

`keras.distillation.LogitsDistillation` is not used for `kd_mse` and `kd_kl`: its KL divergence clips probabilities at
1e-7, where the gradient vanishes, and it divides logits by the temperature for the squared error, too.
"""

from collections.abc import Callable
from typing import Any

import keras

from pbd.config import StudentConfig

Loss = Callable[[Any, Any, Any], Any]
"""Maps (labels, student logits, teacher logits) to a scalar. Labels are (n,), or those of mixed images, (n, 3)."""


def kd_mse(labels: Any, student: Any, teacher: Any) -> Any:
    """Mean squared difference of the logits (Ba and Caruana 2014, arXiv:1312.6184)."""
    return keras.ops.mean(keras.ops.square(student - teacher))


def kd_kl(labels: Any, student: Any, teacher: Any, temperature: float) -> Any:
    """KL divergence at a temperature, times its square (Hinton et al. 2015, arXiv:1503.02531)."""
    ops = keras.ops
    log_p, log_q = ops.log_softmax(teacher / temperature), ops.log_softmax(student / temperature)
    # Gradients of softened outputs shrink with the squared temperature; the factor compensates for that.
    return temperature**2 * ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))


def cross_entropy(labels: Any, student: Any, teacher: Any) -> Any:
    """Cross entropy against the labels; of mixed images, against both labels by their shares (arXiv:1710.09412)."""

    def against(classes: Any) -> Any:
        classes = keras.ops.cast(classes, "int32")
        return keras.losses.sparse_categorical_crossentropy(classes, student, from_logits=True)

    if len(labels.shape) == 1:
        return keras.ops.mean(against(labels))
    share = labels[:, 2]
    return keras.ops.mean(share * against(labels[:, 0]) + (1.0 - share) * against(labels[:, 1]))


def make_loss(config: StudentConfig) -> Loss:
    """Return the loss that the settings name."""

    def kl(labels: Any, student: Any, teacher: Any) -> Any:
        return kd_kl(labels, student, teacher, config.temperature)

    def mixed(labels: Any, student: Any, teacher: Any) -> Any:
        weight = config.distillation_weight
        return weight * kl(labels, student, teacher) + (1.0 - weight) * cross_entropy(labels, student, teacher)

    return {"kd_mse": kd_mse, "kd_kl": kl, "cross_entropy": cross_entropy, "mixed": mixed}[config.fine_tune_loss]
