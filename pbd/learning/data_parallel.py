"""Train one model on several workers: each computes the gradient of its part of the batch, all take the same step.

A step is cut in two, each compiled by Keras on any backend: one that leaves the gradient in a variable in place of
applying it, and one that applies the gradient that all workers have added up.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pbd.collective import Collective
from pbd.learning.flat_adam import in_a_row, size
from pbd.system import devices


class GradientCollector(keras.optimizers.Optimizer):
    """Puts the gradients into `flat`, one behind the other, and changes no variable."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.0)

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.flat = self.add_variable((sum(map(size, variables)),), dtype="float32", name="flat")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Keep the gradients."""
        variables = list(trainable_variables or self._trainable_variables)
        self.build(variables)
        self.flat.assign(in_a_row(grads, variables))


class ApplyGradient(keras.Model):
    """Lets an optimiser take a step along a given gradient: a loss that is linear in the variables has it exactly."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="gradient_step")
        self.model = model

    def call(self, flat: Any) -> Any:
        variables = self.model.trainable_variables
        return keras.ops.sum(in_a_row(variables, variables) * flat)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        return y_pred


class DataParallel:
    """A model and its optimiser on one worker of a collective.

    Args:
        model: has the same weights in all workers, and layers that treat each image by itself.
        optimizer: updates the trainable variables; it is in the same state in all workers.
        collective: those who train it.
        share: how much of each batch is this worker's.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, collective: Collective, share: float
    ) -> None:
        self._model, self._team, self._share = model, collective, share
        self._buffer, self._update = GradientCollector(), ApplyGradient(model)
        self._buffer.build(model.trainable_variables)  # a step that made it on its way would be traced twice
        self._model.compile(self._buffer, jit_compile=devices.compiles_with_xla())
        self._update.compile(optimizer, jit_compile=devices.compiles_with_xla())

    def fit(
        self,
        batches: Iterable[tuple[Any, Any]],
        first_epoch: int,
        epochs: int,
        steps: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> dict[str, list[float]]:
        """Train for epochs [first_epoch, epochs) of so many steps, as `keras.Model.fit` does; return its history.

        Args:
            batches: this worker's part of each.

        Raises:
            CollectiveAbortedError: another worker gave up.
            CollectiveLostError: another worker was lost.
        """
        model = self._model
        told = keras.callbacks.CallbackList(list(callbacks), True, model=model, epochs=epochs, steps=steps)
        model.stop_training = False
        told.on_train_begin()
        coming = iter(batches)
        for epoch in range(first_epoch, epochs):
            told.on_epoch_begin(epoch)
            sums: collections.Counter[str] = collections.Counter()
            for step in range(steps):
                told.on_train_batch_begin(step)
                sums.update(self._step(*next(coming)))
                told.on_train_batch_end(step, {"loss": sums["loss"] / (step + 1)})
                if model.stop_training:
                    break
            told.on_epoch_end(epoch, self._means(sums, step + 1))
            if model.stop_training:
                break
        told.on_train_end()
        return model.history.history

    def _step(self, images: Any, labels: Any) -> dict[str, float]:
        """Take a step along the gradient of the whole batch; return this worker's metrics, and everyone's loss."""
        logs = self._model.train_on_batch(images, labels, return_dict=True)
        own = keras.ops.convert_to_numpy(self._buffer.flat)
        whole = self._team.all_reduce_sum(np.append(own, np.float32(logs["loss"])) * np.float32(self._share))
        self._update.train_on_batch(whole[:-1])
        return {name: float(value) for name, value in logs.items()} | {"loss": float(whole[-1])}

    def _means(self, sums: Mapping[str, float], steps: int) -> dict[str, float]:
        """Return the mean metrics over everyone's images."""
        others = [name for name in sums if name != "loss"]
        shared = self._team.all_reduce_sum(np.array([sums[name] for name in others]) * self._share / steps)
        return dict(zip(others, map(float, shared), strict=True)) | {"loss": sums["loss"] / steps}
