"""Train a group of blocks on one pass of the frozen teacher, each for as long as it learns."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from pbd import data
from pbd.collective import Collective, all_reduce_sums
from pbd.config import TrainingConfig
from pbd.learning import metrics
from pbd.learning.early_stopping import LearningCurve
from pbd.learning.loop import ReportProgress, adam, trainer
from pbd.learning.losses import squared_error
from pbd.networks import graph
from pbd.records import ProgressCallback

STOPPING_IMAGES = 1024
"""How many validation images tell, after every epoch, whether a block still learns."""
TRACING_STEPS = 15
"""Steps that take about as long as tracing a group's graph: 5 (ResNet20 on a CPU, batches of 128) to 26 (of 32)."""


class GroupDistiller(keras.Model):
    """One forward of the frozen teacher feeds every block; each learns its own layer's output (Eq. 3 of the paper).

    The loss is the sum of the blocks' mean squared errors. Inputs and targets are constants of the frozen teacher and
    the optimiser works variable by variable, so each block gets the gradient it would get alone.
    """

    def __init__(self, prefix: keras.Model, built: dict[str, keras.Model]) -> None:
        super().__init__(name="group_distiller")
        prefix.trainable = False
        self.prefix = prefix
        self.parts = [built[name] for name in built]
        self.layer_names = list(built)
        self.errors = [keras.metrics.Mean(name=name) for name in built]

    def call(self, images: Any, training: bool = False) -> list[Any]:
        activations = self.prefix(images, training=False)
        return [
            squared_error(
                part(keras.ops.stop_gradient(activations[name][0]), training=training),
                keras.ops.stop_gradient(activations[name][1]),
            )
            for name, part in zip(self.layer_names, self.parts, strict=True)
        ]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        errors = [keras.ops.mean(error) for error in y_pred]
        for metric, error in zip(self.errors, errors, strict=True):
            metric.update_state(error)
        return sum(errors[1:], errors[0])


def fit(
    config: TrainingConfig,
    teacher: keras.Model,
    built: Mapping[str, keras.Model],
    dataset: data.Dataset,
    variances: Mapping[str, float],
    curves: Mapping[str, LearningCurve],
    emit: ProgressCallback,
    collective: Collective,
) -> None:
    """Train the blocks in place and leave each at its best epoch.

    When a block has flattened depends on its own errors alone; the others train on as if it had never been there.

    Args:
        config: of the run.
        teacher: flat and functional.
        built: the blocks by layer, with their first weights.
        dataset: this worker's part of it.
        variances: of each layer's output (see `target_variances`).
        curves: empty, by layer; they are told of every epoch.
        emit: told of every step.
        collective: those who have the other parts.
    """
    steps = dataset.steps_per_epoch
    weights = [variable for block in built.values() for variable in block.trainable_variables]
    optimizer = adam(config.learning_rate, steps * config.epochs, weights)
    learning = dict(built)
    traced = TracedGroup(teacher, learning, optimizer, dataset, collective)
    for epoch in range(config.epochs + 1):
        if traced.should_retrace(learning):
            traced = TracedGroup(teacher, learning, optimizer, dataset, collective)
        losses = traced.train(learning, epoch - 1, config.epochs, emit) if epoch > 0 else {}
        for name, error in traced.errors(learning).items():
            curves[name].add(error / variances[name], learning[name].get_weights(), losses.get(name))
        learning = {n: b for n, b in learning.items() if not (curves[n].diverged or curves[n].flat(config.patience))}
        if not learning:
            break
    for name, block in built.items():
        block.set_weights(curves[name].best)


class TracedGroup:
    """Blocks that one traced graph trains.

    To be rid of those that have flattened, another must be traced, which takes as long as a small job's epoch. So they
    are taken along, to no effect, until that has cost about as much. Steps are counted, and no clock is asked: a run
    that is made again trains the same graphs, and the workers of a collective agree.
    """

    def __init__(
        self,
        teacher: keras.Model,
        blocks: Mapping[str, keras.Model],
        optimizer: keras.optimizers.Optimizer,
        dataset: data.Dataset,
        collective: Collective,
    ) -> None:
        self._names = tuple(blocks)
        self._dataset, self._team = dataset, collective
        self._distiller = GroupDistiller(graph.truncate(teacher, blocks), dict(blocks))
        self._trainer = trainer(self._distiller, optimizer, dataset, collective)
        self._idle_steps, self._is_sound = 0.0, True

    def should_retrace(self, learning: Mapping[str, Any]) -> bool:
        """Return whether to trace a graph without those that learn no longer; at once if an error is no number."""
        left = len(learning) / len(self._names)
        return left < 1.0 and (self._idle_steps >= TRACING_STEPS * left or not self._is_sound)

    def train(self, learning: Mapping[str, Any], epoch: int, epochs: int, emit: ProgressCallback) -> dict[str, float]:
        """Train all for one of so many epochs; return each block's mean squared error."""
        told = ReportProgress(emit, group_label(self._names)).over(epochs)
        steps = self._dataset.steps_per_epoch
        history = self._trainer.fit(self._dataset.training_batches(epoch, epoch + 1), epoch, epoch + 1, steps, [told])
        self._idle_steps += steps * (1.0 - len(learning) / len(self._names))  # those of all blocks count as one
        return {name: float(values[0]) for name, values in history.items()}

    def errors(self, learning: Mapping[str, Any]) -> dict[str, float]:
        """Return the mean squared errors of those that learn on the images that tell when to stop."""
        errors = _validation_errors(self._distiller, self._dataset, self._team)
        self._is_sound = all(map(math.isfinite, errors.values()))
        return {name: errors[name] for name in learning}


def group_label(names: Iterable[str]) -> str:
    """Return what a group of layers is called where there is little room."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _validation_errors(distiller: GroupDistiller, dataset: data.Dataset, collective: Collective) -> dict[str, float]:
    """Return each block's mean squared error on the images that tell when to stop."""
    sums, seen = np.zeros(len(distiller.parts)), np.zeros(1)
    for images, _, count in metrics.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        errors = np.asarray(distiller.predict_on_batch(images), np.float64)[:, :count]
        sums, seen = sums + errors.sum(axis=1), seen + count
    sums, seen = all_reduce_sums(collective, [sums, seen])
    return dict(zip(distiller.layer_names, map(float, sums / seen), strict=True))


def target_variances(prefix: keras.Model, dataset: data.Dataset, collective: Collective) -> dict[str, float]:
    """Return the variance of each layer's output on the same images.

    Args:
        prefix: from images to each layer's input and output (see `graph.truncate`).
        dataset: this worker's part of it.
        collective: those who have the other parts.
    """
    sums = {name: np.zeros(3) for name in prefix.output}
    for images, _, count in metrics.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        for name, (_, target) in prefix.predict_on_batch(images).items():
            target = np.asarray(target, np.float64)[:count]
            sums[name] += [target.size, target.sum(), np.square(target).sum()]
    return {
        name: max(square / count - (total / count) ** 2, np.finfo(np.float64).tiny)
        for name, (count, total, square) in zip(sums, all_reduce_sums(collective, list(sums.values())), strict=True)
    }
