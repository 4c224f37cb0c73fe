"""Training on the JAX backend: many steps are one compiled call, and the host waits for none of them.

`keras.Model.fit` comes back to Python after every step. On a GPU, that takes longer than the step of a small network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pbd.data import Dataset
from pbd.data.feeds.device_images import Batch, DeviceImages, on_device
from pbd.learning import epochs as epoch_loop
from pbd.system import devices

MOST_STEPS = 512
"""Most steps in one compiled call on an accelerator; between calls there are progress events."""
STEPS_IN_FLIGHT = 16
"""Steps sent to the device before the host waits for them, where each step is a call of its own."""

State = tuple[list[Any], ...]
"""Values of the trainable, the other, the optimiser's and the metrics' variables."""


class ScannedSteps:
    """Trains a model whose batches are made on the device, with `jax.lax.scan` over the steps.

    On a CPU, or if the images do not fit on the device, each step is a compiled call.

    Args:
        model: Implements `compute_loss`.
        optimizer: Is built on the model's trainable variables.
        dataset: The whole data.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, dataset: Dataset) -> None:
        import jax

        self._model, self._dataset = model, dataset
        self._images = on_device(dataset, dataset.train)
        self._inputs: dict[int, Batch] = {}
        """The inputs of the next epoch, made while the device computes."""
        model.compile(optimizer, jit_compile=True)
        model.build((None, *dataset.image_shape))
        self._scan, self._step = jax.jit(self._train_steps), jax.jit(self._train_step)

    def fit(
        self,
        first_epoch: int,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        first_data_epoch: int | None = None,
    ) -> dict[str, list[float]]:
        """See `loop.Trainer.fit`."""
        offset = 0 if first_data_epoch is None else first_data_epoch - first_epoch
        steps = self._dataset.steps_per_epoch

        def train_epoch(epoch: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
            self._model.reset_metrics()
            if self._images is not None and devices.has_accelerator():
                yield from self._scanned(self._images, epoch + offset)
            else:
                yield from self._one_by_one(epoch + offset)

        return epoch_loop.run(self._model, first_epoch, epochs, steps, callbacks, train_epoch)

    def _scanned(self, images: DeviceImages, epoch: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        done, state, steps = 0, self._state(), self._dataset.steps_per_epoch
        inputs = self._inputs.pop(epoch, None) or images.training_inputs(epoch)
        try:
            for part in _parts(inputs, -(-steps // MOST_STEPS)):
                state, logs = self._scan(state, images.images, part)
                done += len(part["rows"])
                if done == steps:  # the device computes meanwhile
                    self._inputs = {epoch + 1: images.training_inputs(epoch + 1)}
                yield done, {name: values[-1] for name, values in logs.items()}
        finally:
            self._assign(state)

    def _one_by_one(self, epoch: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        state, in_flight = self._state(), STEPS_IN_FLIGHT if devices.has_accelerator() else 1
        try:
            for done, batch in enumerate(self._dataset.training_batches(epoch, epoch + 1), start=1):
                state, logs = self._step(state, batch)
                if done % in_flight == 0 or done == self._dataset.steps_per_epoch:
                    yield done, logs
        finally:
            self._assign(state)

    def _train_steps(self, state: State, images: Any, inputs: Batch) -> tuple[State, dict[str, Any]]:
        """Return the state after some steps, and the mean metrics after each, `(steps,)`."""
        import jax

        assert self._images is not None
        form = self._images.form
        return jax.lax.scan(lambda s, i: self._train_step(s, (form(images, i), i["labels"])), state, inputs)

    def _train_step(self, state: State, batch: tuple[Any, Any]) -> tuple[State, dict[str, Any]]:
        logs, state = self._model.train_step(state, batch)
        return state, logs

    def _variables(self) -> tuple[list[Any], ...]:
        model = self._model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )

    def _state(self) -> State:
        return tuple([variable.value for variable in variables] for variables in self._variables())

    def _assign(self, state: State) -> None:
        for variables, values in zip(self._variables(), state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                if value is not variable.value:
                    variable.assign(value)


def _parts(inputs: Batch, count: int) -> Iterator[Batch]:
    """Yield the inputs of steps in `count` parts as equal as possible: parts of one length share a compiled call."""
    split = {name: np.array_split(values, count) for name, values in inputs.items()}
    return ({name: parts[i] for name, parts in split.items()} for i in range(count))
