"""The training loop: optimiser, single-process and data-parallel trainers, progress events, training on labels."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import keras

from pbd.collective import Collective
from pbd.data import Dataset
from pbd.learning.data_parallel import DataParallel
from pbd.learning.flat_adam import FlatAdam
from pbd.learning.metrics import outputs_probabilities
from pbd.records import Progress, ProgressCallback
from pbd.system import devices, watchdog


def adam(learning_rate: float, steps: int, variables: Iterable[Any]) -> FlatAdam:
    """Return Adam for these variables, with a learning rate that decays to zero along a cosine in `steps` steps.

    All training in pbd gets its optimiser here. It is already built: Keras would trace the first step twice if that
    step created the optimiser's variables.
    """
    optimizer = FlatAdam(keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps)))
    optimizer.build(list(variables))
    return optimizer


class Trainer(Protocol):
    """Trains one compiled model."""

    def fit(
        self,
        batches: Iterable[tuple[Any, Any]],
        first_epoch: int,
        epochs: int,
        steps: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> dict[str, list[float]]:
        """Train for epochs [first_epoch, epochs); return the mean metrics of each epoch.

        Args:
            batches: This worker's part of each batch, pairs of images and labels.
            first_epoch: Number of the first epoch, from 0.
            epochs: Number of the last epoch plus one.
            steps: Steps per epoch.
            callbacks: As in `keras.Model.fit`.
        """
        ...


class _SingleProcess:
    """Trains with `keras.Model.fit`."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        self._model = model
        model.compile(optimizer, jit_compile=devices.compiles_with_xla())

    def fit(
        self,
        batches: Iterable[tuple[Any, Any]],
        first_epoch: int,
        epochs: int,
        steps: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> dict[str, list[float]]:
        return self._model.fit(
            batches,
            initial_epoch=first_epoch,
            epochs=epochs,
            steps_per_epoch=steps,
            callbacks=list(callbacks),
            shuffle=False,
            verbose=0,
        ).history


def trainer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, dataset: Dataset, collective: Collective
) -> Trainer:
    """Return a trainer for the model: data-parallel if the collective has several workers.

    Args:
        model: The same on all workers; it implements `compute_loss`.
        optimizer: In the same state on all workers.
        dataset: This worker's part of the data.
        collective: The workers that have the other parts.
    """
    if collective.size > 1:
        return DataParallel(model, optimizer, collective, dataset.share)
    return _SingleProcess(model, optimizer)


class ReportProgress(keras.callbacks.Callback):
    """Emits a `Progress` event after every step.

    Args:
        emit: Called with each event.
        label: What is trained, for display.
    """

    def __init__(self, emit: ProgressCallback, label: str) -> None:
        super().__init__()
        self._emit, self._label, self._epoch = emit, label, 0
        self._epochs: int | None = None

    def over(self, epochs: int) -> "ReportProgress":
        """Set the total number of epochs, if `fit` is called for some of them only."""
        self._epochs = epochs
        return self

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        watchdog.touch()
        steps, loss = self.params["steps"], (logs or {}).get("loss")
        done, total = self._epoch * steps + batch + 1, steps * (self._epochs or self.params["epochs"])
        self._emit(Progress(0, self._label, done, total, self._epoch + 1, None if loss is None else float(loss)))


class Validate(keras.callbacks.Callback):
    """Adds loss and metrics on the validation split to the logs of each epoch, for the callbacks after it.

    Keras' own `validation_data` must be read anew in every epoch, which an iterator of batches cannot be.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self._dataset = dataset

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        steps = -(-len(self._dataset.validation) // self._dataset.batch_size)
        batches = self._dataset.batches("validation")
        results = self.model.evaluate(batches, steps=steps, return_dict=True, verbose=0)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})


class KeepBest(keras.callbacks.Callback):
    """Restores the epoch with the best validation accuracy; of equal ones, the one with the lowest validation loss."""

    def __init__(self) -> None:
        super().__init__()
        self._best = (-1.0, float("-inf"))
        self._weights: list[Any] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        current = (logs["val_accuracy"], -logs["val_loss"])
        if current > self._best:
            self._best, self._weights = current, self.model.get_weights()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model.set_weights(self._weights)


def fit_on_labels(
    model: keras.Model,
    dataset: Dataset,
    epochs: int,
    learning_rate: float,
    emit: ProgressCallback,
    label: str,
) -> tuple[dict[str, float], ...]:
    """Train a classifier with cross entropy and leave it at its best epoch on the validation split.

    Args:
        model: Trained in place.
        dataset: With labels.
        epochs: Passes over the training split.
        learning_rate: Initial learning rate of a cosine decay.
        emit: Called with the progress of every step.
        label: What is trained, for display.

    Returns:
        Loss and accuracy on the training and validation splits, one entry per epoch.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    steps = dataset.steps_per_epoch
    model.compile(
        optimizer=adam(learning_rate, steps * epochs, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not outputs_probabilities(model, images)),
        # A metric given by name would be built in the first step, which would then be traced twice.
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=devices.compiles_with_xla(),
    )
    history = model.fit(
        dataset.training_batches(0, epochs),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[ReportProgress(emit, label), Validate(dataset), KeepBest()],
        shuffle=False,
        verbose=0,
    ).history
    return tuple(dict(zip(history, map(float, row), strict=True)) for row in zip(*history.values(), strict=True))
