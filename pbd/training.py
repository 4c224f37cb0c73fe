"""Train a group of blocks in one pass of the frozen teacher, then score each of them."""

import functools
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from pbd import blocks, datasets, devices, evaluation, graph
from pbd.config import DataConfig, TrainingConfig
from pbd.errors import MissingInputError
from pbd.fitting import Emit, ReportProgress, Trainer, adam, trainer
from pbd.initialisation import FIT_IMAGES, initialise
from pbd.journal import Journal
from pbd.records import BlockResult, Progress, TaskGroup
from pbd.scoring import Score, score, squared_error
from pbd.stopping import LearningCurve
from pbd.teamwork import ALONE, BrokenTeamError, LostTeamError, Team, add_up_all

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


@dataclass(frozen=True)
class TrainingContext:
    """What a worker needs to train any group of a run; small and picklable, so it can be sent anywhere."""

    teacher_path: str
    data: DataConfig
    image_shape: tuple[int, int, int]
    training: TrainingConfig
    block: str
    block_init: str
    seed: int
    journal: Journal
    session: str = ""
    """Of one run: what a worker process has loaded, it keeps for one session."""


@functools.lru_cache(maxsize=1)
def load_teacher(path: str, session: str = "") -> keras.Model:
    """Return the run's flattened teacher, loaded once per process.

    Raises:
        MissingInputError: there is no such file on this host.
    """
    if not os.path.isfile(path):
        raise MissingInputError(
            f"every worker must see the run directory. Received: no {path} on {platform.node()}. "
            "Give a --run-dir on storage that all hosts share."
        )
    return keras.models.load_model(path, compile=False)


@functools.lru_cache(maxsize=1)
def load_dataset(data: DataConfig, seed: int, image_shape: tuple[int, int, int], session: str = "") -> datasets.Dataset:
    """Return the run's data, loaded once per process."""
    return datasets.load(data, seed, image_shape)


def load(context: TrainingContext) -> tuple[keras.Model, datasets.Dataset]:
    """Return the run's teacher and its data, each loaded once per process.

    Raises:
        PbdError: they cannot be loaded here.
    """
    teacher = load_teacher(context.teacher_path, context.session)
    return teacher, load_dataset(context.data, context.seed, context.image_shape, context.session)


def train_group(context: TrainingContext, group: TaskGroup, emit: Emit, team: Team = ALONE) -> list[BlockResult]:
    """Train and score the blocks of a group, and write each to the run directory the moment it is done.

    A group that cannot be trained together is tried task by task, so that one bad block costs only itself. A block that
    is in the run directory (its worker was lost before it could say so) is not trained again.

    Args:
        context: of the run.
        group: the tasks to train in one pass.
        emit: told of every step.
        team: those who train the same group with the same arguments at the same time, each on its part of every batch;
            the blocks must treat each image by itself.

    Returns:
        One result per task, `trained` or `failed`; `worker`, `started_s` and (unless it was found) `seconds` are the
        executor's to fill in.

    Raises:
        PbdError: this worker cannot load the teacher or the data.
        LostTeamError: another worker was lost.
    """
    committed = {task.layer_name: context.journal.committed_block(task.layer_name) for task in group.tasks}
    (seen,) = add_up_all(team, [np.array([result is not None for result in committed.values()], np.int64)])
    everywhere = dict(zip(committed, seen == team.size, strict=True))  # nobody may take another's for done
    left = tuple(task for task in group.tasks if not everywhere[task.layer_name])
    found = [replace(r, found=True) for name, r in committed.items() if r is not None and everywhere[name]]
    return found + (_train(context, TaskGroup(left), emit, team) if left else [])


def _train(context: TrainingContext, group: TaskGroup, emit: Emit, team: Team) -> list[BlockResult]:
    began = time.monotonic()
    teacher, dataset = load(context)
    mine = dataset.shared(datasets.Part(team.index, team.size))
    try:
        results = _train_together(context, group, teacher, mine, emit, team)
        peak_bytes = _most(team, devices.peak_memory())  # and nobody has failed since the last sum
    except LostTeamError:
        raise
    except Exception as error:
        if not isinstance(error, BrokenTeamError):
            team.give_up()
        if len(group.tasks) > 1:
            return [result for task in group.tasks for result in _train(context, TaskGroup((task,)), emit, team)]
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        return [BlockResult(group.tasks[0].layer_name, "failed", context.block, error=message)]
    results = [replace(result, peak_bytes=peak_bytes) for result in results]
    for result in results:
        if result.status == "trained" and team.index == 0:
            context.journal.commit_block(replace(result, seconds=time.monotonic() - began))
    return results


def _most(team: Team, value: float) -> int:
    """Return the largest of what the members of a team have."""
    return int(team.add_up(np.where(np.arange(team.size) == team.index, value, 0.0)).max())


def _train_together(
    context: TrainingContext, group: TaskGroup, teacher: keras.Model, dataset: datasets.Dataset, emit: Emit, team: Team
) -> list[BlockResult]:
    built = {task.layer_name: blocks.build_block(context.block, task, context.seed) for task in group.tasks}
    prefix = graph.truncate(teacher, built)  # one model, since each is traced anew
    _give_first_weights(context, group, built, teacher, prefix, dataset, team)
    variances = _target_variances(prefix, dataset, team)
    start_counts = context.block in blocks.DECOUPLED_RANKS and context.block_init != "noise"
    curves = {name: LearningCurve(start_counts) for name in built}
    _fit(context.training, teacher, built, dataset, variances, curves, emit, team)
    total = dataset.steps_per_epoch * context.training.epochs
    emit(Progress(0, f"scoring {_label(built)}", total, total, context.training.epochs))
    scores = score(teacher, built, dataset, team)
    return [_result(context, name, block, curves[name], scores[name]) for name, block in built.items()]


def _give_first_weights(
    context: TrainingContext,
    group: TaskGroup,
    built: dict[str, keras.Model],
    teacher: keras.Model,
    prefix: keras.Model,
    dataset: datasets.Dataset,
    team: Team,
) -> None:
    """Give each worker of the team some of the blocks to begin, and everyone the weights of all."""
    own = group.tasks[team.index :: team.size]
    if own:
        mine = {task.layer_name: built[task.layer_name] for task in own}
        images = (batch for batch, _ in replace(dataset, part=datasets.WHOLE).batches("train", limit=FIT_IMAGES))
        feeding = prefix if len(mine) == len(built) else graph.truncate(teacher, mine)
        initialise(mine, own, teacher, feeding, images, context.block, context.block_init, context.seed)
    if team.size > 1:
        names = {task.layer_name for task in own}
        weights = [w if name in names else 0.0 * w for name, block in built.items() for w in block.get_weights()]
        coming = iter(add_up_all(team, weights))
        for block in built.values():
            block.set_weights([next(coming) for _ in block.weights])


def _label(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _fit(
    config: TrainingConfig,
    teacher: keras.Model,
    built: dict[str, keras.Model],
    dataset: datasets.Dataset,
    variances: dict[str, float],
    curves: dict[str, LearningCurve],
    emit: Emit,
    team: Team,
) -> None:
    """Train the blocks in place and leave each at its best epoch; one that has flattened leaves the graph.

    When a block leaves depends on its own errors alone, and the optimiser keeps its state for the others: they train
    on as if it had never been there.
    """
    steps = dataset.steps_per_epoch
    optimizer = adam(config.learning_rate, steps * config.epochs)
    optimizer.build([variable for block in built.values() for variable in block.trainable_variables])
    active = dict(built)
    distiller = GroupDistiller(graph.truncate(teacher, active), active)
    trains = trainer(distiller, optimizer, dataset, team)
    for epoch in range(config.epochs + 1):
        if len(distiller.parts) != len(active):
            distiller = GroupDistiller(graph.truncate(teacher, active), active)
            trains = trainer(distiller, optimizer, dataset, team)
        losses: dict[str, float] = {}
        if epoch > 0:
            told = ReportProgress(emit, _label(active)).over(config.epochs)
            losses = _one_epoch(trains, dataset, epoch - 1, told)
        for name, error in _validation_errors(distiller, dataset, team).items():
            curves[name].add(error / variances[name], active[name].get_weights(), losses.get(name))
        active = {n: b for n, b in active.items() if not (curves[n].diverged or curves[n].flat(config.patience))}
        if not active:
            break
    for name, block in built.items():
        block.set_weights(curves[name].best)


def _one_epoch(trains: Trainer, dataset: datasets.Dataset, epoch: int, progress: ReportProgress) -> dict[str, float]:
    """Train for one epoch; return each block's mean squared error."""
    batches = dataset.training_batches(epoch, epoch + 1)
    history = trains.fit(batches, epoch, epoch + 1, dataset.steps_per_epoch, [progress])
    return {name: float(values[0]) for name, values in history.items()}


def _validation_errors(distiller: GroupDistiller, dataset: datasets.Dataset, team: Team) -> dict[str, float]:
    """Return each block's mean squared error on the images that tell when to stop."""
    sums, seen = np.zeros(len(distiller.parts)), np.zeros(1)
    for images, _, count in evaluation.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        errors = np.asarray(distiller.predict_on_batch(images), np.float64)[:, :count]
        sums, seen = sums + errors.sum(axis=1), seen + count
    sums, seen = add_up_all(team, [sums, seen])
    return dict(zip(distiller.layer_names, map(float, sums / seen), strict=True))


def _target_variances(prefix: keras.Model, dataset: datasets.Dataset, team: Team) -> dict[str, float]:
    """Return the variance of each layer's output on the same images."""
    sums = {name: np.zeros(3) for name in prefix.output}
    for images, _, count in evaluation.in_one_size(dataset.batches("validation", limit=STOPPING_IMAGES)):
        for name, (_, target) in prefix.predict_on_batch(images).items():
            target = np.asarray(target, np.float64)[:count]
            sums[name] += [target.size, target.sum(), np.square(target).sum()]
    return {
        name: max(square / count - (total / count) ** 2, np.finfo(np.float64).tiny)
        for name, (count, total, square) in zip(sums, add_up_all(team, list(sums.values())), strict=True)
    }


def _result(
    context: TrainingContext, layer_name: str, block: keras.Model, curve: LearningCurve, found: Score
) -> BlockResult:
    weights = blocks.get_weights(block)
    finite = math.isfinite(found.nmse) and all(np.isfinite(value).all() for value in weights.values())
    failed = not finite or (curve.diverged and found.nmse >= 1.0)  # a block that diverged may have been good before
    return BlockResult(
        layer_name=layer_name,
        status="failed" if failed else "trained",
        block=context.block,
        weights={} if failed else weights,
        loss_history=tuple(curve.losses),
        nmse_history=tuple(curve.errors),
        nmse=None if failed else found.nmse,
        val_accuracy=None if failed else found.marks.accuracy,
        val_agreement=None if failed else found.marks.agreement,
        val_kl=None if failed else found.marks.kl,
        error="training diverged, and no epoch was better than a constant. Lower --learning-rate." if failed else None,
    )
