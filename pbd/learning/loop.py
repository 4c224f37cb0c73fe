"""The training loop: optimiser, single-process and data-parallel trainers, progress events, training on labels."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import keras

from pbd.collective import Collective
from pbd.data import Dataset
from pbd.learning.data_parallel import DataParallel
from pbd.learning.flat_adam import FlatAdam
from pbd.learning.metrics import outputs_probabilities
from pbd.learning.scanned_steps import ScannedSteps
from pbd.records import Progress, ProgressCallback
from pbd.system import devices, initial_values, watchdog


@initial_values.on_host()
def adam(
    learning_rate: float,
    steps: int,
    variables: Iterable[Any],
    precision: str = "float32",
    keep_zeros: bool = False,
    warmup: int = 0,
    scale_steps: bool = False,
    new: Iterable[Any] = (),
) -> keras.optimizers.Optimizer:
    """Return Adam for these variables, with a learning rate that decays to zero along a cosine in `steps` steps.

    For a model that computes in float16, the loss is scaled: gradients of a mean over a feature map would be 0.

    All training in pbd gets its optimiser here. It is already built: Keras would trace the first step twice if that
    step created the optimiser's variables.

    Args:
        learning_rate: At the first step, or after the warm-up.
        steps: Until the learning rate is zero.
        variables: Trained; with `keep_zeros` and `scale_steps` they have the values with which training starts.
        precision: In which the model computes.
        keep_zeros: Whether elements of kernels that are zero now stay zero (see `FlatAdam`).
        warmup: Number of the first steps, in which the learning rate rises from `learning_rate / warmup`.
        scale_steps: Whether kernels of small weights have a lower learning rate (see `FlatAdam`).
        new: Those of the variables whose zeros are trained even with `keep_zeros`.
    """
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps))
    if warmup:
        schedule = keras.optimizers.schedules.CosineDecay(
            learning_rate / warmup, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
        )
    flat = FlatAdam(schedule, keep_zeros, scale_steps)
    optimizer: Any = keras.optimizers.LossScaleOptimizer(flat) if precision == "float16" else flat
    optimizer.build(list(variables))
    flat.train_zeros_of(new)
    return optimizer


def restricted(optimizer: Any, variables: Sequence[Any]) -> keras.optimizers.Optimizer:
    """Return the optimiser that goes on with some of the variables of one that `adam` returned."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.restricted_to(variables)
    scaled = keras.optimizers.LossScaleOptimizer(optimizer.inner_optimizer.restricted_to(variables))
    scaled.build(list(variables))
    scaled.dynamic_scale.assign(optimizer.dynamic_scale)
    scaled.step_counter.assign(optimizer.step_counter)
    return scaled


class Trainer(Protocol):
    """Trains one model on the training split of a dataset."""

    def fit(
        self,
        first_epoch: int,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        first_data_epoch: int | None = None,
    ) -> dict[str, list[float]]:
        """Train for epochs [first_epoch, epochs); return the mean metrics of each epoch.

        Args:
            first_epoch: Number of the first epoch, from 0.
            epochs: Number of the last epoch plus one.
            callbacks: As in `keras.Model.fit`; `on_train_batch_end` is called at least once in an epoch, after the last
                of some steps that were compiled together.
            first_data_epoch: The epoch of the data with which to start; by default `first_epoch`.
        """
        ...


class _KerasFit:
    """Trains with `keras.Model.fit`."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, dataset: Dataset) -> None:
        self._model, self._dataset = model, dataset
        model.compile(optimizer, jit_compile=devices.compiles_with_xla())

    def fit(
        self,
        first_epoch: int,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        first_data_epoch: int | None = None,
    ) -> dict[str, list[float]]:
        start = first_epoch if first_data_epoch is None else first_data_epoch
        return self._model.fit(
            self._dataset.training_batches(start, start + epochs - first_epoch),
            initial_epoch=first_epoch,
            epochs=epochs,
            steps_per_epoch=self._dataset.steps_per_epoch,
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
        return DataParallel(model, optimizer, dataset, collective)
    if keras.backend.backend() == "jax":
        return ScannedSteps(model, optimizer, dataset)
    return _KerasFit(model, optimizer, dataset)


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

    Keras' own `validation_data` must be read again in every epoch, which an iterator of batches cannot be.
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
