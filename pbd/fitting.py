"""What every call of Keras' `fit` here has in common: optimiser, progress, the best epoch, training on labels."""

from collections.abc import Callable
from typing import Any

import keras

from pbd import devices, evaluation
from pbd.datasets import Dataset
from pbd.records import Progress

Emit = Callable[[Progress], None]


def adam(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Return Adam with a learning rate that falls to zero along a cosine in `steps` steps."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps)))


class ReportProgress(keras.callbacks.Callback):
    """Sends a `Progress` event after every step."""

    def __init__(self, emit: Emit, label: str) -> None:
        super().__init__()
        self._emit, self._label, self._epoch, self._epochs = emit, label, 0, None

    def over(self, epochs: int) -> "ReportProgress":
        """Report against this many epochs in all, where `fit` is called for a part of them."""
        self._epochs = epochs
        return self

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
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
    emit: Emit,
    label: str,
) -> tuple[dict[str, float], ...]:
    """Train a classifier with cross entropy and leave it at its best epoch on the validation split.

    Returns:
        Loss and accuracy on the training and validation splits, an entry per epoch.
    """
    images, _ = next(iter(dataset.batches("validation", limit=dataset.batch_size)))
    steps = dataset.steps_per_epoch
    model.compile(
        optimizer=adam(learning_rate, steps * epochs),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=not evaluation.ends_in_probabilities(model, images)
        ),
        metrics=["accuracy"],
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
