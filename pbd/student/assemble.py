"""From accepted blocks to a student: assemble, re-estimate batch statistics, fine-tune, keep the promised accuracy."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.config import RunConfig, StudentConfig
from pbd.data import Dataset
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.progress import ProgressDisplay
from pbd.records import BlockResult, BlockTask, ProgressCallback
from pbd.student import fine_tuning
from pbd.student.fine_tuning import Tuning, examine
from pbd.system import random_state, watchdog

STATISTICS_IMAGES = 2048
"""How many training images the batch statistics are re-estimated on."""
ROUNDING = 1e-9
"""A target that is met exactly is met."""
Tune = Callable[[keras.Model, StudentConfig, Metrics, int], Tuning]
"""Fine-tunes a student in place, given the settings, its marks as it comes, and the data's epoch to begin with."""
Recalibrate = Callable[[keras.Model], Metrics]
"""Re-estimates a student's batch statistics, in place, and returns its marks on the validation split."""
AIM = 0.8
"""The share of the accuracy drop allowed that the next student is made for: what it loses is only foretold roughly."""


def assemble(teacher: keras.Model, tasks: Iterable[BlockTask], accepted: Mapping[str, BlockResult]) -> keras.Model:
    """Return a copy of the teacher with every accepted block in its layer's place."""
    student = graph.swap(
        teacher,
        {
            task.layer.name: functools.partial(blocks.get(task.design).build, layer=task.layer, seed=0)
            for task in tasks
            if task.layer.name in accepted and accepted[task.layer.name].design == task.design
        },
    )
    for result in accepted.values():
        blocks.set_weights(student, result.weights)
    return student


def recalibrate_batch_norm(student: keras.Model, images: Iterable[Any], collective: Collective = SINGLE) -> None:
    """Set all batch statistics to their averages over these batches, as the student itself produces them.

    The blocks learned on the teacher's activations; behind other blocks, the inputs of every normalisation, the
    teacher's own too, have shifted. Each batch counts the same; all other layers run as in inference.

    Args:
        student: changed in place.
        images: batches of training images.
        collective: those whose batches count, too.
    """
    normalisations = [layer for layer in student.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not normalisations:
        return
    kept = [(layer.momentum, layer.trainable) for layer in normalisations]
    training, count = {layer.name for layer in normalisations}, 0
    for layer in normalisations:
        layer.trainable = True  # Keras leaves the statistics of a frozen one alone
    for count, batch in enumerate(images, start=1):
        watchdog.touch()
        for layer in normalisations:
            layer.momentum = 1.0 - 1.0 / count
        graph.run(student, keras.ops.convert_to_tensor(batch), training=training)
    for layer, (momentum, trainable) in zip(normalisations, kept, strict=True):
        layer.momentum, layer.trainable = momentum, trainable
    statistics = [value for layer in normalisations for value in (layer.moving_mean, layer.moving_variance)]
    sums = [count * keras.ops.convert_to_numpy(value) for value in statistics]
    *sums, counts = all_reduce_sums(collective, [*sums, np.array([count], np.float32)])
    for value, total in zip(statistics, sums, strict=True):
        value.assign(total / counts)


def layers_of(accepted: Mapping[str, BlockResult]) -> set[str]:
    """Return the names of the layers that the accepted blocks are made of."""
    return {key.rpartition("/")[0] for result in accepted.values() for key in result.weights}


def freeze_outside(student: keras.Model, accepted: Mapping[str, BlockResult], scope: str) -> None:
    """Leave trainable what the scope names: `blocks`, `all`, or `no_1x1_dense` (the paper's ResNet setting)."""
    ours = layers_of(accepted)
    for layer in student.layers:
        if scope == "all":  # also what was frozen when the teacher was trained
            layer.trainable = True
        elif scope == "blocks":
            layer.trainable = layer.name in ours
        elif layer.name not in ours:
            pointwise = isinstance(layer, keras.layers.Conv2D) and tuple(layer.kernel_size) == (1, 1)
            layer.trainable = not (pointwise or isinstance(layer, keras.layers.Dense))


@dataclass(frozen=True)
class Student:
    """The finished network, and how it came to be."""

    model: keras.Model
    """Not compiled: its file holds no optimiser."""
    assembled: Metrics
    """On the validation split, before fine-tuning."""
    marks: Metrics
    """On the validation split, as it is now."""
    history: tuple[dict[str, float], ...] = ()
    """Of the fine-tuning, a row per epoch."""
    events: tuple[str, ...] = ()
    restored: dict[str, str] = field(default_factory=dict)
    """Layers that the student got back from the teacher, and why."""


@dataclass
class StudentBuilder:
    """What every step on the way to a student needs."""

    teacher: keras.Model
    dataset: Dataset
    tasks: Sequence[BlockTask]
    config: RunConfig
    recalibrate: Recalibrate
    tune: Tune

    def assemble(self, accepted: Mapping[str, BlockResult]) -> tuple[keras.Model, Metrics]:
        """Return the teacher with the accepted blocks, all its batch statistics re-estimated, and its marks."""
        model = assemble(self.teacher, self.tasks, accepted)
        return model, self.recalibrate(model) if accepted else self.examine(model)

    def examine(self, model: keras.Model) -> Metrics:
        """Return the marks on the validation split."""
        return examine(model, self.teacher, self.dataset)

    def fine_tune(
        self,
        model: keras.Model,
        accepted: Mapping[str, BlockResult],
        before: Metrics,
        settings: StudentConfig,
        first_epoch: int = 0,
    ) -> Tuning:
        """Fine-tune what the scope names, and leave the layers as trainable as they were."""
        if settings.fine_tune_epochs == 0 or not accepted:
            return Tuning(before)
        trainable = {layer.name: layer.trainable for layer in model.layers}
        freeze_outside(model, accepted, settings.fine_tune_scope)
        tuning = self.tune(model, settings, before, first_epoch)
        for layer in model.layers:
            layer.trainable = trainable[layer.name]
        return tuning


def make(
    teacher: keras.Model,
    dataset: Dataset,
    tasks: Sequence[BlockTask],
    accepted: dict[str, BlockResult],
    config: RunConfig,
    display: ProgressDisplay,
    recalibrate: Recalibrate | None = None,
    tune: Tune | None = None,
) -> Student:
    """Put the accepted blocks into the teacher's place, re-estimate their statistics, and fine-tune the whole.

    With a target, the layers whose blocks cost most are given back to the student, and it is made again of the others,
    until the target holds or no block is left.

    Args:
        teacher: flat and functional.
        dataset: whose training split the student learns from, and whose validation split choices are made on.
        tasks: every convolution.
        accepted: the blocks to use, by layer.
        config: of the run.
        display: told of phases and progress.
        recalibrate: what re-estimates statistics; by default this process does.
        tune: what fine-tunes a student; by default this process does.
    """
    random_state.seed(blocks.derive_seed(config.seed, "student"))  # for layers such as dropout
    recalibrate, tune = (
        recalibrate or recalibrate_here(teacher, dataset),
        tune or tune_here(teacher, dataset, display.update),
    )
    builder = StudentBuilder(teacher, dataset, tasks, config, recalibrate, tune)
    model, assembled = builder.assemble(accepted)
    display.phase(f"assembled {len(accepted)} accepted blocks: {_describe(assembled)}")
    tuning = builder.fine_tune(model, accepted, assembled, config.student)
    display.phase(f"fine-tuned for {len(tuning.history)} epochs: {_describe(tuning.best)}")
    student = Student(model, assembled, tuning.best, tuning.history, tuning.events)
    if config.student.target_accuracy_drop is not None:
        student = _restore_until_accurate(builder, student, accepted, display)
    return replace(student, model=graph.flatten(student.model))


def recalibrate_here(teacher: keras.Model, dataset: Dataset) -> Recalibrate:
    """Return what re-estimates statistics in this process alone."""
    return lambda model: recalibrate_and_evaluate(model, teacher, dataset)


def recalibrate_and_evaluate(
    model: keras.Model, teacher: keras.Model, dataset: Dataset, collective: Collective = SINGLE
) -> Metrics:
    """Re-estimate the batch statistics of a student on training images; return its marks on the validation split.

    Args:
        model: changed in place.
        teacher: which its marks compare it with.
        dataset: this worker's part of it.
        collective: those who have the other parts.
    """
    recalibrate_batch_norm(model, (x for x, _ in dataset.batches("train", limit=STATISTICS_IMAGES)), collective)
    return examine(model, teacher, dataset, collective)


def tune_here(teacher: keras.Model, dataset: Dataset, emit: ProgressCallback) -> Tune:
    """Return what fine-tunes a student in this process alone."""

    def tune(model: keras.Model, settings: StudentConfig, before: Metrics, first_epoch: int) -> Tuning:
        return fine_tuning.fine_tune(model, teacher, dataset, settings, before, emit, first_epoch)

    return tune


def _restore_until_accurate(
    builder: StudentBuilder, student: Student, accepted: dict[str, BlockResult], display: ProgressDisplay
) -> Student:
    """Give layers back until the validation accuracy is within the target of the teacher's.

    The blocks that cost most go first, as many as the accuracy that is missing calls for, and the student is made anew
    of the others: what was tuned around a block is no better off with the teacher's layer in its place.
    """
    teacher = builder.examine(builder.teacher)
    target = builder.config.student.target_accuracy_drop or 0.0
    wanted = teacher.score - target - ROUNDING
    kept = dict(accepted)
    while student.marks.score < wanted and kept:
        worst = worst_blocks(kept, AIM * target / (teacher.score - student.marks.score))
        kept = {name: result for name, result in kept.items() if name not in worst}
        model, before = builder.assemble(kept)
        tuning = builder.fine_tune(model, kept, before, builder.config.student, len(student.history))
        line = f"gave back {', '.join(worst)}: {_describe(student.marks)} -> {_describe(tuning.best)}"
        display.phase(f"{line} (wanted {wanted:.4f})")
        why = f"cost most, with the student at {student.marks.score:.4f} < {wanted:.4f}"
        student = Student(
            model,
            student.assembled,
            tuning.best,
            student.history + tuning.history,
            (*student.events, f"{line} (wanted {wanted:.4f})", *tuning.events),
            student.restored | dict.fromkeys(worst, why),
        )
    return student


def worst_blocks(accepted: Mapping[str, BlockResult], share: float) -> tuple[str, ...]:
    """Return the blocks that cost most, one at least, half of them at most, so that the others cost this share at most.

    A block's cost is how far the teacher's outputs diverge with only it swapped in.
    """
    cost = {name: _cost(result) for name, result in accepted.items()}
    by_cost = sorted(cost, key=lambda name: cost[name], reverse=True)
    total = sum(cost.values())
    enough = (count for count in range(1, len(by_cost)) if sum(cost[name] for name in by_cost[count:]) <= share * total)
    return tuple(by_cost[: min(next(enough, len(by_cost)), math.ceil(len(by_cost) / 2))])


def _cost(result: BlockResult) -> float:
    return result.val_kl if result.val_kl is not None and math.isfinite(result.val_kl) else math.inf


def _describe(marks: Metrics) -> str:
    judged = "agreement" if marks.accuracy is None else "accuracy"
    return f"validation {judged} {marks.score:.4f}"
