"""Train a group of blocks in one pass of the frozen teacher, then score each of them."""

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from pbd import blocks, datasets, devices, graph
from pbd.config import DataConfig, TrainingConfig
from pbd.fitting import Emit, ReportProgress, adam
from pbd.journal import Journal
from pbd.records import BlockResult, LayerTask, Progress, TaskGroup


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
            _squared_error(part(keras.ops.stop_gradient(activations[name][0]), training=training), activations[name][1])
            for name, part in zip(self.layer_names, self.parts, strict=True)
        ]

    def match_targets(self, images: Any) -> None:
        """Give each block's last normalisation the mean and deviation of its target on these images, per channel.

        A step of Adam moves a scale by little more than the learning rate: a block would spend most of a short
        training on nothing else (data-dependent initialisation, Salimans and Kingma 2016).
        """
        activations = self.prefix.predict_on_batch(images)
        for name, part in zip(self.layer_names, self.parts, strict=True):
            target = np.asarray(activations[name][1])
            last = [layer for layer in part.layers if isinstance(layer, keras.layers.BatchNormalization)][-1]
            last.gamma.assign(target.std(axis=(0, 1, 2)))
            last.beta.assign(target.mean(axis=(0, 1, 2)))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        errors = [keras.ops.mean(error) for error in y_pred]
        for metric, error in zip(self.errors, errors, strict=True):
            metric.update_state(error)
        return sum(errors[1:], errors[0])


def _squared_error(output: Any, target: Any) -> Any:
    """Mean squared error of each image, shape `(batch,)`."""
    return keras.ops.mean(keras.ops.square(output - keras.ops.stop_gradient(target)), axis=(1, 2, 3))


@dataclass(frozen=True)
class TrainingContext:
    """What a worker needs to train any group of a run; small and picklable, so it can be sent anywhere."""

    teacher_path: str
    data: DataConfig
    image_shape: tuple[int, int, int]
    training: TrainingConfig
    block: str
    seed: int
    journal: Journal


@functools.lru_cache(maxsize=1)
def load_teacher(path: str) -> keras.Model:
    """Return the run's flattened teacher, loaded once per process."""
    return keras.models.load_model(path, compile=False)


@functools.lru_cache(maxsize=1)
def load_dataset(data: DataConfig, seed: int, image_shape: tuple[int, int, int]) -> datasets.Dataset:
    """Return the run's data, loaded once per process."""
    return datasets.load(data, seed, image_shape)


def train_group(context: TrainingContext, group: TaskGroup, emit: Emit) -> list[BlockResult]:
    """Train and score the blocks of a group, and write each to the run directory the moment it is done.

    A group that cannot be trained together is tried task by task, so that one bad block costs only itself.

    Returns:
        One result per task, `trained` or `failed`; `worker`, `started_s` and `seconds` are the executor's to fill in.
    """
    began = time.monotonic()
    try:
        results = _train_together(context, group, emit)
    except Exception as error:
        if len(group.tasks) > 1:
            return [result for task in group.tasks for result in train_group(context, TaskGroup((task,)), emit)]
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        return [BlockResult(group.tasks[0].layer_name, "failed", context.block, error=message)]
    for result in results:
        if result.status == "trained":
            context.journal.commit_block(replace(result, seconds=time.monotonic() - began))
    return results


def _train_together(context: TrainingContext, group: TaskGroup, emit: Emit) -> list[BlockResult]:
    teacher = load_teacher(context.teacher_path)
    dataset = load_dataset(context.data, context.seed, context.image_shape)
    built = {task.layer_name: blocks.build_block(context.block, task, context.seed) for task in group.tasks}
    histories = _fit(context.training, teacher, built, dataset, group, emit)
    total = dataset.steps_per_epoch * context.training.epochs
    emit(Progress(0, f"scoring {_label(group)}", total, total, context.training.epochs))
    scores = score(teacher, built, dataset)
    return [_result(context, task, built[task.layer_name], histories, scores) for task in group.tasks]


def _label(group: TaskGroup) -> str:
    names = group.layer_names
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _fit(
    config: TrainingConfig,
    teacher: keras.Model,
    built: dict[str, keras.Model],
    dataset: datasets.Dataset,
    group: TaskGroup,
    emit: Emit,
) -> dict[str, tuple[float, ...]]:
    """Train the blocks in place; return each one's mean squared error per epoch."""
    if config.epochs == 0:
        return dict.fromkeys(built, ())
    steps = dataset.steps_per_epoch
    distiller = GroupDistiller(graph.truncate(teacher, built), built)
    distiller.match_targets(next(iter(dataset.training_batches(0, 1)))[0])
    distiller.compile(adam(config.learning_rate, steps * config.epochs), jit_compile=devices.compiles_with_xla())
    history = distiller.fit(
        dataset.training_batches(0, config.epochs),
        epochs=config.epochs,
        steps_per_epoch=steps,
        callbacks=[ReportProgress(emit, _label(group))],
        shuffle=False,
        verbose=0,
    ).history
    return {name: tuple(float(value) for value in history[name]) for name in built}


class GroupScorer(keras.Model):
    """For each image and block: the class predicted with only it swapped in, its error, its target's moments."""

    def __init__(self, teacher: keras.Model, built: dict[str, keras.Model]) -> None:
        super().__init__(name="group_scorer")
        self.swapped = keras.Model(teacher.inputs, list(graph.swap_each(teacher, built).values()))
        self.prefix = graph.truncate(teacher, built)
        self.parts = list(built.values())
        self.layer_names = list(built)

    def call(self, images: Any) -> dict[str, Any]:
        ops = keras.ops
        scores = keras.tree.flatten(self.swapped(images, training=False))
        activations = self.prefix(images, training=False)
        inputs, targets = zip(*(activations[name] for name in self.layer_names), strict=True)
        outputs = [part(x, training=False) for part, x in zip(self.parts, inputs, strict=True)]
        return {
            "predicted": ops.stack([ops.argmax(score, axis=-1) for score in scores], axis=1),
            "error": ops.stack([_squared_error(y, t) for y, t in zip(outputs, targets, strict=True)], axis=1),
            "mean": ops.stack([ops.mean(target, axis=(1, 2, 3)) for target in targets], axis=1),
            "square": ops.stack([ops.mean(ops.square(target), axis=(1, 2, 3)) for target in targets], axis=1),
        }


@dataclass(frozen=True)
class Score:
    """How one block does on the validation split."""

    nmse: float
    val_accuracy: float


def score(teacher: keras.Model, built: dict[str, keras.Model], dataset: datasets.Dataset) -> dict[str, Score]:
    """Score every block on the validation split in one pass: the teacher's prefix is computed once for all.

    Returns:
        For each layer: its block's squared error over the variance of the layer's output, and the accuracy of the
        teacher with only this block swapped in.
    """
    scorer = GroupScorer(teacher, built)
    scorer.compile(jit_compile=devices.compiles_with_xla())
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("predicted", "error", "mean", "square", "labels")}
    for images, labels in dataset.batches("validation"):
        parts["labels"].append(np.asarray(labels))
        for key, value in scorer.predict_on_batch(images).items():
            parts[key].append(np.asarray(value, dtype=np.float64))
    columns = {key: np.concatenate(value) for key, value in parts.items()}
    right = (columns["predicted"] == columns["labels"][:, None]).mean(axis=0)
    variance = columns["square"].mean(axis=0) - columns["mean"].mean(axis=0) ** 2
    nmse = columns["error"].mean(axis=0) / np.maximum(variance, np.finfo(np.float64).tiny)
    return {name: Score(float(nmse[i]), float(right[i])) for i, name in enumerate(built)}


def _result(
    context: TrainingContext,
    task: LayerTask,
    block: keras.Model,
    histories: dict[str, tuple[float, ...]],
    scores: dict[str, Score],
) -> BlockResult:
    name = task.layer_name
    weights = blocks.get_weights(block)
    finite = math.isfinite(scores[name].nmse) and all(np.isfinite(value).all() for value in weights.values())
    return BlockResult(
        layer_name=name,
        status="trained" if finite else "failed",
        block=context.block,
        weights=weights if finite else {},
        loss_history=histories[name],
        nmse=scores[name].nmse if finite else None,
        val_accuracy=scores[name].val_accuracy if finite else None,
        error=None if finite else "training diverged: the error is not a finite number. Lower --learning-rate.",
    )
