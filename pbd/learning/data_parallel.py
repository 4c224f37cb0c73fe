"""Data-parallel training: each worker computes the gradient of its part of the batch, all take the same step.

A step is split into two Keras models, each of which any backend can compile: one writes the gradient to a variable
without applying it, the other applies the gradient that all workers have summed.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pbd.collective import Collective
from pbd.data import Dataset
from pbd.learning import epochs as epoch_loop
from pbd.learning.flat_adam import concatenate, size
from pbd.system import devices


class GradientCollector(keras.optimizers.Optimizer):
    """An optimiser that writes the gradient to the vector `flat` and leaves the model's variables unchanged."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.0)

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.flat = self.add_variable((sum(map(size, variables)),), dtype="float32", name="flat")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Write the gradients to `flat`, concatenated in the order of the variables."""
        variables = list(trainable_variables or self._trainable_variables)
        self.build(variables)
        self.flat.assign(concatenate(grads, variables))


class ApplyGradient(keras.Model):
    """Lets an optimiser take a step along a given gradient.

    Keras only lets an optimiser apply the gradient of a loss. The loss here is the dot product of the trainable
    variables with the vector that the model gets as its input, so its gradient is exactly that vector.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="apply_gradient")
        self.model = model

    def call(self, gradient: Any) -> Any:
        variables = self.model.trainable_variables
        return keras.ops.sum(concatenate(variables, variables) * gradient)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        return y_pred


class DataParallel:
    """A model and its optimiser on one worker of a collective.

    Args:
        model: Has the same weights on all workers; its loss must be a mean over images that do not affect each other.
        optimizer: Updates the trainable variables; it is in the same state on all workers.
        dataset: This worker's part of the data.
        collective: The workers that train the model.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, dataset: Dataset, collective: Collective
    ) -> None:
        self._model, self._dataset, self._collective = model, dataset, collective
        self._collector, self._update = GradientCollector(), ApplyGradient(model)
        # Keras would trace the first step twice if that step created the collector's variable.
        self._collector.build(model.trainable_variables)
        self._model.compile(self._collector, jit_compile=devices.compiles_with_xla())
        self._update.compile(optimizer, jit_compile=devices.compiles_with_xla())

    def fit(
        self,
        first_epoch: int,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        first_data_epoch: int | None = None,
    ) -> dict[str, list[float]]:
        """Train for epochs [first_epoch, epochs), as `keras.Model.fit` does; return its history.

        Args:
            first_epoch: Number of the first epoch, from 0.
            epochs: Number of the last epoch plus one.
            callbacks: Called on all workers with the same loss; a callback that stops training stops it on all.
            first_data_epoch: The epoch of the data with which to start; by default `first_epoch`.

        Raises:
            CollectiveAbortedError: Another worker failed.
            CollectiveLostError: Another worker was lost.
        """
        start = first_epoch if first_data_epoch is None else first_data_epoch
        steps = self._dataset.steps_per_epoch
        batches = iter(self._dataset.training_batches(start, start + epochs - first_epoch))

        def train_epoch(epoch: int) -> Iterator[tuple[int, Mapping[str, float]]]:
            sums: collections.Counter[str] = collections.Counter()
            for done in range(1, steps + 1):
                sums.update(self._step(*next(batches)))
                yield done, {"loss": sums["loss"] / done} if done < steps else self._means(sums, steps)

        return epoch_loop.run(self._model, first_epoch, epochs, steps, callbacks, train_epoch)

    def _step(self, images: Any, labels: Any) -> dict[str, float]:
        """Take a step along the gradient of the whole batch.

        Returns:
            The mean loss over the whole batch, and this worker's other metrics.
        """
        logs = self._model.train_on_batch(images, labels, return_dict=True)
        gradient = keras.ops.convert_to_numpy(self._collector.flat)
        # The mean over the batch is the mean of the workers' means, weighted by their shares.
        values = np.append(gradient, np.float32(logs["loss"])) * np.float32(self._dataset.share)
        total = self._collective.all_reduce_sum(values)
        self._update.train_on_batch(total[:-1])
        return {name: float(value) for name, value in logs.items()} | {"loss": float(total[-1])}

    def _means(self, sums: Mapping[str, float], steps: int) -> dict[str, float]:
        """Return the mean metrics over the images of all workers."""
        names = [name for name in sums if name != "loss"]
        means = self._collective.all_reduce_sum(np.array([sums[name] for name in names]) * self._dataset.share / steps)
        return dict(zip(names, map(float, means), strict=True)) | {"loss": sums["loss"] / steps}
