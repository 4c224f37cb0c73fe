"""The loop over epochs and its callbacks, around any way to train the steps of one epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

EpochSteps = Callable[[int], Iterator[tuple[int, Mapping[str, Any]]]]
"""Trains the epoch of this number; yields, after each step or several, the steps done and the mean metrics so far."""


def run(
    model: keras.Model,
    first_epoch: int,
    epochs: int,
    steps: int,
    callbacks: Sequence[keras.callbacks.Callback],
    train_epoch: EpochSteps,
) -> dict[str, list[float]]:
    """Train for epochs [first_epoch, epochs), as `keras.Model.fit` does; return the metrics of each epoch.

    Args:
        model: A callback that sets its `stop_training` ends training.
        first_epoch: Number of the first epoch, from 0.
        epochs: Number of the last epoch plus one.
        steps: Steps per epoch.
        callbacks: As in `keras.Model.fit`; there is no `on_train_batch_begin`.
        train_epoch: Trains one epoch.
    """
    notify = keras.callbacks.CallbackList(list(callbacks), True, model=model, epochs=epochs, steps=steps)
    model.stop_training = False
    notify.on_train_begin()
    for epoch in range(first_epoch, epochs):
        notify.on_epoch_begin(epoch)
        logs: dict[str, float] = {}
        for done, means in train_epoch(epoch):
            logs = {name: float(value) for name, value in means.items()}
            notify.on_train_batch_end(done - 1, logs)
            if model.stop_training:
                break
        notify.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    notify.on_train_end()
    return model.history.history
