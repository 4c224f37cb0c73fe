"""What all training here has in common: the loop, alone or in a collective, optimiser, progress, the best epoch."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import keras

from pbd.collective import Collective
from pbd.data import Dataset
from pbd.learning import metrics
from pbd.learning.data_parallel import DataParallel
from pbd.learning.flat_adam import FlatAdam
from pbd.records import Progress, ProgressCallback
from pbd.system import devices, watchdog


def adam(learning_rate: float, steps: int, variables: Iterable[Any]) -> keras.optimizers.Optimizer:
    """Return Adam for these variables, with a learning rate that falls to zero along a cosine in `steps` steps.

    It is built: a step that makes variables on its way would be traced twice.
    """
    optimizer = FlatAdam(keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps)))
    optimizer.build(list(variables))
    return optimizer


class Trainer(Protocol):
    """Trains the model it was made for."""

    def fit(
        self,
        batches: Iterable[tuple[Any, Any]],
        first_epoch: int,
        epochs: int,
        steps: int,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> dict[str, list[float]]:
        """Train for epochs [first_epoch, epochs) of so many steps each; return the mean metrics of each epoch."""
        ...


class _Single:
    """Keras' own loop."""

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
        told = {"callbacks": list(callbacks), "shuffle": False, "verbose": 0}
        return self._model.fit(batches, initial_epoch=first_epoch, epochs=epochs, steps_per_epoch=steps, **told).history


def trainer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, dataset: Dataset, collective: Collective
) -> Trainer:
    """Return what trains the model: Keras alone, or together with the others of a collective.

    Args:
        model: the same in all workers; it has its loss.
        optimizer: in the same state in all workers.
        dataset: this worker's part of it.
        collective: those who have the other parts.
    """
    return (
        DataParallel(model, optimizer, collective, dataset.share) if collective.size > 1 else _Single(model, optimizer)
    )


class ReportProgress(keras.callbacks.Callback):
    """Sends a `Progress` event after every step."""

    def __init__(self, emit: ProgressCallback, label: str) -> None:
        super().__init__()
        self._emit, self._label, self._epoch, self._epochs = emit, label, 0, None

    def over(self, epochs: int) -> "ReportProgress":
        """Report against this many epochs in all, where `fit` is called for a part of them."""
        self._epochs = epochs
        return self

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        watchdog.touch()
        steps, loss = self.params["steps"], (logs or {}).get("loss")
        done, total = self._epoch * steps + batch + 1, steps * (self._epochs or self.params["epochs"])
        self._emit(Progress(0, self._label, done, total, self._epoch + 1, None if loss is None else float(loss)))


class KeepBest(keras.callbacks.Callback):
    """Leaves the model at the epoch with the best validation accuracy (among equals, the lowest loss)."""

    def __init__(self) -> None:
        super().__init__()
        self._best = (-1.0, float("-inf"))
        self._weights: list[Any] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        reached = (logs["val_accuracy"], -logs["val_loss"])
        if reached > self._best:
            self._best, self._weights = reached, self.model.get_weights()

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

    Returns:
        Loss and accuracy on the training and validation splits, an entry per epoch.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    steps = dataset.steps_per_epoch
    model.compile(
        optimizer=adam(learning_rate, steps * epochs, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not metrics.ends_in_probabilities(model, images)),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],  # a name would be built in the first step
        jit_compile=devices.compiles_with_xla(),
    )
    history = model.fit(
        dataset.training_batches(0, epochs),
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=dataset.batches("validation"),
        callbacks=[ReportProgress(emit, label), KeepBest()],
        shuffle=False,
        verbose=0,
    ).history
    return tuple(dict(zip(history, map(float, row), strict=True)) for row in zip(*history.values(), strict=True))
