"""What a student may be tuned by: its own logits, its teacher's, and the labels."""

import math
from collections.abc import Callable
from typing import Any

import keras

from pbd.config import StudentConfig

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


def squared_error(output: Any, target: Any) -> Any:
    """Mean squared error of each image, shape `(batch,)`; its gradient, written out, goes over the difference once."""
    ops = keras.ops

    @ops.custom_gradient
    def error(output: Any, target: Any) -> Any:
        difference = output - target

        def gradients(*upstreams: Any, upstream: Any = None) -> tuple[Any, Any]:
            upstream = upstreams[0] if upstream is None else upstream
            of_output = ops.reshape(2.0 / math.prod(output.shape[1:]) * upstream, (-1, 1, 1, 1)) * difference
            return of_output, -of_output

        return ops.mean(ops.square(difference), axis=(1, 2, 3)), gradients

    return error(output, target)
