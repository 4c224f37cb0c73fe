"""Adam over many small variables as over a single long one: the same steps, in a fraction of the operations."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
"""Those of `keras.optimizers.Adam`."""


class FlatAdam(keras.optimizers.Optimizer):
    """What `keras.optimizers.Adam` computes (Kingma and Ba 2014, arXiv:1412.6980), all variables at once.

    Adam treats every number by itself, so it does not matter which variable it belongs to. Keras builds operations for
    each variable: of tracing a step of 18 blocks, 54 variables, they took half the time (2.6 of 4.7 s).

    Args:
        learning_rate: a number, or a schedule of steps.
    """

    def __init__(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule) -> None:
        super().__init__(learning_rate)

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(list(variables))
        length = sum(map(size, variables))
        self._momentum = self.add_variable((length,), dtype="float32", name="momentum")
        self._velocity = self.add_variable((length,), dtype="float32", name="velocity")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take a step.

        Args:
            grads: of each of the variables; `None` where the loss does not depend on it.
            trainable_variables: those it was built on, or some of them: the others stay as they are for good.

        Raises:
            ValueError: it was built on others, or the loss depends on none of them.
        """
        ops, given = keras.ops, list(trainable_variables or self._trainable_variables)
        self.build(given)
        unknown = {id(v) for v in given} - {id(v) for v in self._trainable_variables}
        if unknown:
            raise ValueError(f"variables must be among those it was built on. Received: {len(unknown)} others.")
        gradients = {id(v): g for v, g in zip(given, grads, strict=True) if g is not None}
        if not gradients:
            raise ValueError("the loss must depend on one of the variables at least. Received: no gradient.")
        gradient = in_a_row([gradients.get(id(v)) for v in self._trainable_variables], self._trainable_variables)
        ends = np.cumsum(list(map(size, self._trainable_variables)))
        changes = ops.split(self._change(gradient), ends[:-1].tolist())
        for variable, change in zip(self._trainable_variables, changes, strict=True):
            if id(variable) in gradients:
                variable.assign_sub(ops.cast(ops.reshape(change, variable.shape), variable.dtype))
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))
        self.iterations.assign_add(1)

    def _change(self, gradient: Any) -> Any:
        """Return what is to be taken off all variables, and keep both moments."""
        ops, step = keras.ops, keras.ops.cast(self.iterations + 1, "float32")
        momentum = self._momentum + (gradient - self._momentum) * (1 - BETA_1)
        velocity = self._velocity + (ops.square(gradient) - self._velocity) * (1 - BETA_2)
        self._momentum.assign(momentum)
        self._velocity.assign(velocity)
        rate = self.learning_rate * ops.sqrt(1 - ops.power(BETA_2, step)) / (1 - ops.power(BETA_1, step))
        return momentum * rate / (ops.sqrt(velocity) + EPSILON)


def in_a_row(values: Sequence[Any], variables: Sequence[Any]) -> Any:
    """Return what belongs to each variable, in its shape, one behind the other, float32; zeros for `None`."""
    ops = keras.ops
    parts = [ops.zeros_like(v) if g is None else g for g, v in zip(values, variables, strict=True)]
    return ops.concatenate([ops.cast(ops.reshape(part, (-1,)), "float32") for part in parts])


def size(variable: Any) -> int:
    """Return how many numbers a variable holds."""
    return math.prod(variable.shape)
