"""Train a group of blocks on one forward pass of the frozen teacher; each block stops when it no longer improves."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from pbd import data
from pbd.collective import Collective, all_reduce_sums
from pbd.config import TrainingConfig
from pbd.learning.early_stopping import LearningCurve
from pbd.learning.loop import ReportProgress, adam, restricted, trainer
from pbd.learning.losses import squared_error
from pbd.learning.metrics import pad_batches
from pbd.networks import graph, precision
from pbd.records import BlockKey, ProgressCallback

STOPPING_IMAGES = 1024
"""Validation images used for early stopping, after every epoch."""
TRACING_STEPS = 15
"""Training steps that take as long as tracing a group's graph: measured 5 to 26 (ResNet20 on a CPU, batches of 128 to
32 images)."""


class GroupDistiller(keras.Model):
    """Trains blocks side by side: each learns to compute its layer's output from its layer's input.

    The loss is the sum over the blocks of the mean squared error (Eq. 3 of arXiv:2012.03096). Inputs and targets come
    from the frozen teacher, so no gradient passes from one block to another, and the optimiser treats each variable by
    itself. Each block is therefore trained exactly as it would be alone, except in float16: a gradient that overflows
    skips the step of all blocks.

    Args:
        prefix: maps images to each layer's input and output (see `graph.truncate`); it is frozen.
        built: blocks by layer and design; several may learn from one layer.
    """

    def __init__(self, prefix: keras.Model, built: dict[BlockKey, keras.Model]) -> None:
        super().__init__(name="group_distiller", dtype="float32")
        prefix.trainable = False
        self.prefix = prefix
        self.blocks = list(built.values())
        self.keys = list(built)
        self.errors = [keras.metrics.Mean(name=str(key)) for key in built]

    def call(self, images: Any, training: bool = False) -> list[Any]:
        """Return the squared error of each block, averaged per image: one tensor of shape `(batch,)` per block."""
        activations = self.prefix(images, training=False)
        return [
            squared_error(
                block(keras.ops.stop_gradient(activations[key.layer][0]), training=training),
                keras.ops.stop_gradient(activations[key.layer][1]),
            )
            for key, block in zip(self.keys, self.blocks, strict=True)
        ]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the sum of the blocks' mean squared errors; labels and sample weights are not used."""
        errors = [keras.ops.mean(error) for error in y_pred]
        for metric, error in zip(self.errors, errors, strict=True):
            metric.update_state(error)
        return sum(errors[1:], errors[0])


def fit(
    config: TrainingConfig,
    teacher: keras.Model,
    built: Mapping[BlockKey, keras.Model],
    dataset: data.Dataset,
    variances: Mapping[str, float],
    curves: Mapping[BlockKey, LearningCurve],
    emit: ProgressCallback,
    collective: Collective,
) -> None:
    """Train the blocks in place and set each to the weights of its best epoch.

    A block stops when its own validation error stops falling or is not finite. Its stopping does not affect the
    training of the other blocks. Without epochs, no block is trained, and a block without trainable variables never is:
    such a block keeps its weights, and its learning curve stays empty.

    Args:
        config: the run's training settings.
        teacher: flat and functional.
        built: the blocks, with their initial weights; trained as copies in half precision if so configured.
        dataset: this worker's part of the data.
        variances: variance of each layer's output (see `target_variances`); not used without epochs.
        curves: an empty learning curve per block; filled in here.
        emit: called after every step.
        collective: the workers that train these blocks together.
    """
    built = {key: block for key, block in built.items() if block.trainable_variables}
    if config.block_epochs == 0 or not built:
        return
    steps = dataset.steps_per_epoch
    teacher = precision.mixed(teacher, config.precision)
    learning = {key: precision.mixed(block, config.precision) for key, block in built.items()}
    weights = [variable for block in learning.values() for variable in block.trainable_variables]
    optimizer = adam(config.learning_rate, steps * config.block_epochs, weights, config.precision)
    traced = TracedGroup(teacher, learning, optimizer, dataset, collective)
    # Pass 0 only measures the error of the initial weights; training epochs count from 1.
    for epoch in range(config.block_epochs + 1):
        if traced.should_retrace(learning):
            # The remaining blocks keep their moments, and the learning rate its schedule.
            optimizer = restricted(optimizer, [v for block in learning.values() for v in block.trainable_variables])
            traced = TracedGroup(teacher, learning, optimizer, dataset, collective)
        losses = traced.train(learning, epoch - 1, config.block_epochs, emit) if epoch > 0 else {}
        for key, error in traced.errors(learning).items():
            curves[key].add(error / variances[key.layer], learning[key].get_weights(), losses.get(key))
        ended = {key for key in learning if curves[key].diverged or curves[key].has_plateaued(config.patience)}
        learning = {key: block for key, block in learning.items() if key not in ended}
        if not learning:
            break
    for key, block in built.items():
        block.set_weights(curves[key].best_weights)


class TracedGroup:
    """The blocks that one traced graph trains.

    Dropping converged blocks means retracing the graph. Retrace only once the wasted steps cost as much as tracing
    (`TRACING_STEPS`); steps are counted, not timed, so all workers decide alike, and so does a repeated run.
    """

    def __init__(
        self,
        teacher: keras.Model,
        built: Mapping[BlockKey, keras.Model],
        optimizer: keras.optimizers.Optimizer,
        dataset: data.Dataset,
        collective: Collective,
    ) -> None:
        self._keys = tuple(built)
        self._dataset, self._collective = dataset, collective
        self._distiller = GroupDistiller(graph.truncate(teacher, [key.layer for key in built]), dict(built))
        self._trainer = trainer(self._distiller, optimizer, dataset, collective)
        self._wasted_steps, self._losses_finite, self._all_finite = 0.0, True, True

    def should_retrace(self, learning: Mapping[BlockKey, Any]) -> bool:
        """Return whether to trace a new graph with only the blocks that still learn.

        If any error or loss is not finite, the graph is retraced at once: that block would make the summed loss
        meaningless.

        Args:
            learning: the blocks that still learn.
        """
        fraction = len(learning) / len(self._keys)
        # Tracing costs about as much as the blocks in the new graph, hence the factor.
        return fraction < 1.0 and (self._wasted_steps >= TRACING_STEPS * fraction or not self._all_finite)

    def train(
        self, learning: Mapping[BlockKey, Any], epoch: int, epochs: int, emit: ProgressCallback
    ) -> dict[BlockKey, float]:
        """Train all blocks for one epoch, number `epoch` of `epochs`; return each block's mean squared error."""
        progress = ReportProgress(emit, group_label(dict.fromkeys(key.layer for key in self._keys))).over(epochs)
        steps = self._dataset.steps_per_epoch
        history = self._trainer.fit(epoch, epoch + 1, [progress])
        # In units of a step of the whole group: a step with a quarter of the blocks converged wastes a quarter.
        self._wasted_steps += steps * (1.0 - len(learning) / len(self._keys))
        losses = {BlockKey.parse(name): float(values[0]) for name, values in history.items()}
        self._losses_finite = all(map(math.isfinite, losses.values()))
        return losses

    def errors(self, learning: Mapping[BlockKey, Any]) -> dict[BlockKey, float]:
        """Return the mean squared errors, on the images for early stopping, of the blocks that still learn."""
        errors = _validation_errors(self._distiller, self._dataset, self._collective)
        self._all_finite = self._losses_finite and all(map(math.isfinite, errors.values()))
        return {key: errors[key] for key in learning}


def group_label(names: Iterable[str]) -> str:
    """Return a short name for a group of layers: first and last layer, and how many there are."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _validation_errors(
    distiller: GroupDistiller, dataset: data.Dataset, collective: Collective
) -> dict[BlockKey, float]:
    """Return each block's mean squared error on the images for early stopping, over all workers."""
    sums, image_count = np.zeros(len(distiller.blocks)), np.zeros(1)
    for images, _, count in pad_batches(dataset.batches("validation", limit=STOPPING_IMAGES)):
        errors = np.asarray(distiller.predict_on_batch(images), np.float64)[:, :count]
        sums, image_count = sums + errors.sum(axis=1), image_count + count
    sums, image_count = all_reduce_sums(collective, [sums, image_count])
    return dict(zip(distiller.keys, map(float, sums / image_count), strict=True))


def target_variances(prefix: keras.Model, dataset: data.Dataset, collective: Collective) -> dict[str, float]:
    """Return the variance of each layer's output over the images for early stopping of all workers.

    Args:
        prefix: maps images to each layer's input and output (see `graph.truncate`).
        dataset: this worker's part of the data.
        collective: the workers that have the other parts.
    """
    sums = {name: np.zeros(3) for name in prefix.output}  # number of values, their sum, the sum of their squares
    for images, _, count in pad_batches(dataset.batches("validation", limit=STOPPING_IMAGES)):
        for name, (_, target) in prefix.predict_on_batch(images).items():
            target = np.asarray(target, np.float64)[:count]
            sums[name] += [target.size, target.sum(), np.square(target).sum()]
    return {  # never zero, since errors are divided by it
        name: max(square / count - (total / count) ** 2, np.finfo(np.float64).tiny)
        for name, (count, total, square) in zip(sums, all_reduce_sums(collective, list(sums.values())), strict=True)
    }
