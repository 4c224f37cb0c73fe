"""Train a group of blocks on one pass of the frozen teacher, each for as long as it learns."""

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from pbd import datasets, evaluation, graph
from pbd.config import TrainingConfig
from pbd.fitting import Emit, ReportProgress, adam, trainer
from pbd.scoring import squared_error
from pbd.stopping import LearningCurve
from pbd.teamwork import Team, add_up_all

STOPPING_IMAGES = 1024
"""How many validation images tell, after every epoch, whether a block still learns."""


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
    dataset: datasets.Dataset,
    variances: Mapping[str, float],
    curves: Mapping[str, LearningCurve],
    emit: Emit,
    team: Team,
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
        team: those who have the other parts.
    """
    steps = dataset.steps_per_epoch
    optimizer = adam(config.learning_rate, steps * config.epochs)
    optimizer.build([variable for block in built.values() for variable in block.trainable_variables])
    learning = dict(built)
    crowd = _Crowd(teacher, learning, optimizer, dataset, team)
    for epoch in range(config.epochs + 1):
        if any(curves[name].diverged for name in crowd.names) or crowd.is_outgrown_by(learning):
            crowd = _Crowd(teacher, learning, optimizer, dataset, team)
        losses = crowd.train(learning, epoch - 1, config.epochs, emit) if epoch > 0 else {}
        for name, error in crowd.errors(learning).items():
            curves[name].add(error / variances[name], learning[name].get_weights(), losses.get(name))
        learning = {n: b for n, b in learning.items() if not (curves[n].diverged or curves[n].flat(config.patience))}
        if not learning:
            break
    for name, block in built.items():
        block.set_weights(curves[name].best)


class _Crowd:
    """Blocks that one traced graph trains.

    To be rid of those that have flattened, another must be traced, which takes seconds, as many as an epoch of a small
    job. So they are taken along, to no effect, until they have cost as much: who knew beforehand when the others would
    flatten could do twice as well at best (the ski rental problem; Karlin et al. 1988, Competitive snoopy caching).
    """

    def __init__(
        self,
        teacher: keras.Model,
        blocks: Mapping[str, keras.Model],
        optimizer: keras.optimizers.Optimizer,
        dataset: datasets.Dataset,
        team: Team,
    ) -> None:
        self.names = tuple(blocks)
        self._dataset, self._team = dataset, team
        self._distiller = GroupDistiller(graph.truncate(teacher, blocks), dict(blocks))
        self._trainer = trainer(self._distiller, optimizer, dataset, team)
        self._paces, self._idle_steps = StepTimes(), 0.0

    def is_outgrown_by(self, learning: Mapping[str, Any]) -> bool:
        """Return, the same in the whole team, whether the others have cost as much as tracing without them would."""
        if len(learning) == len(self.names):
            return False
        coming_s = self._paces.trace_s * len(learning) / len(self.names)
        idle_s, trace_s = self._team.add_up(np.array([self._idle_steps * self._paces.typical_s, coming_s]))
        return bool(idle_s >= trace_s)

    def train(self, learning: Mapping[str, Any], epoch: int, epochs: int, emit: Emit) -> dict[str, float]:
        """Train all for one of so many epochs; return each block's mean squared error."""
        told = ReportProgress(emit, label(learning)).over(epochs)
        steps = self._dataset.steps_per_epoch
        batches = self._dataset.training_batches(epoch, epoch + 1)
        history = self._trainer.fit(batches, epoch, epoch + 1, steps, [told, self._paces])
        self._idle_steps += steps * (1.0 - len(learning) / len(self.names))
        return {name: float(values[0]) for name, values in history.items()}

    def errors(self, learning: Mapping[str, Any]) -> dict[str, float]:
        """Return the mean squared errors of those that learn on the images that tell when to stop."""
        errors = _validation_errors(self._distiller, self._dataset, self._team)
        return {name: errors[name] for name in learning}


class StepTimes(keras.callbacks.Callback):
    """Seconds of the training steps of one graph, the first of which traces it."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: list[float] = []
        self._began = 0.0

    @property
    def typical_s(self) -> float:
        """Median of all; 0 before the first."""
        return statistics.median(self._taken) if self._taken else 0.0

    @property
    def trace_s(self) -> float:
        """How much longer the first took."""
        return max(0.0, self._taken[0] - self.typical_s) if self._taken else 0.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._taken.append(time.perf_counter() - self._began)


def label(names: Iterable[str]) -> str:
    """Return what a group of layers is called where there is little room."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _validation_errors(distiller: GroupDistiller, dataset: datasets.Dataset, team: Team) -> dict[str, float]:
    """Return each block's mean squared error on the images that tell when to stop."""
    sums, seen = np.zeros(len(distiller.parts)), np.zeros(1)
    for images, _, count in evaluation.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        errors = np.asarray(distiller.predict_on_batch(images), np.float64)[:, :count]
        sums, seen = sums + errors.sum(axis=1), seen + count
    sums, seen = add_up_all(team, [sums, seen])
    return dict(zip(distiller.layer_names, map(float, sums / seen), strict=True))


def target_variances(prefix: keras.Model, dataset: datasets.Dataset, team: Team) -> dict[str, float]:
    """Return the variance of each layer's output on the same images.

    Args:
        prefix: from images to each layer's input and output (see `graph.truncate`).
        dataset: this worker's part of it.
        team: those who have the other parts.
    """
    sums = {name: np.zeros(3) for name in prefix.output}
    for images, _, count in evaluation.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        for name, (_, target) in prefix.predict_on_batch(images).items():
            target = np.asarray(target, np.float64)[:count]
            sums[name] += [target.size, target.sum(), np.square(target).sum()]
    return {
        name: max(square / count - (total / count) ** 2, np.finfo(np.float64).tiny)
        for name, (count, total, square) in zip(sums, add_up_all(team, list(sums.values())), strict=True)
    }
