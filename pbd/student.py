"""From accepted blocks to a student: assemble, re-estimate batch statistics, fine-tune."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from pbd import blocks, evaluation, graph
from pbd.config import RunConfig, StudentConfig
from pbd.datasets import Dataset
from pbd.fitting import Emit, fit_on_labels
from pbd.progress import ProgressDisplay
from pbd.records import BlockResult, LayerTask

STATISTICS_IMAGES = 2048
"""How many training images the blocks' statistics are re-estimated on."""


def assemble(
    teacher: keras.Model, tasks: Iterable[LayerTask], accepted: dict[str, BlockResult], block: str
) -> keras.Model:
    """Return a copy of the teacher with every accepted block in its layer's place."""
    student = graph.swap(teacher, [task for task in tasks if task.layer_name in accepted], block)
    for result in accepted.values():
        blocks.set_weights(student, result.weights)
    return student


def reestimate_statistics(student: keras.Model, accepted: dict[str, BlockResult], images: Iterable[Any]) -> None:
    """Set the blocks' batch statistics to their averages over these batches, as the student itself produces them.

    The blocks learned on the teacher's activations; behind other blocks their inputs have shifted. Each batch counts
    the same; all other layers run as in inference.
    """
    ours = _layers_of(accepted)
    normalisations = [
        layer for layer in student.layers if layer.name in ours and isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in normalisations]
    names = {layer.name for layer in normalisations}
    for count, batch in enumerate(images, start=1):
        for layer in normalisations:
            layer.momentum = 1.0 - 1.0 / count
        graph.run(student, keras.ops.convert_to_tensor(batch), training=names)
    for layer, momentum in zip(normalisations, momenta, strict=True):
        layer.momentum = momentum


def _layers_of(accepted: dict[str, BlockResult]) -> set[str]:
    """Return the names of the layers that the accepted blocks are made of."""
    return {key.rpartition("/")[0] for result in accepted.values() for key in result.weights}


def freeze_outside(student: keras.Model, accepted: dict[str, BlockResult], scope: str) -> None:
    """Leave trainable what the scope names: `blocks`, `all`, or `no_1x1_dense` (the paper's ResNet setting)."""
    ours = _layers_of(accepted)
    for layer in student.layers:
        if scope == "all":  # also what was frozen when the teacher was trained
            layer.trainable = True
        elif scope == "blocks":
            layer.trainable = layer.name in ours
        elif layer.name not in ours:
            pointwise = isinstance(layer, keras.layers.Conv2D) and tuple(layer.kernel_size) == (1, 1)
            layer.trainable = not (pointwise or isinstance(layer, keras.layers.Dense))


def fine_tune(
    model: keras.Model,
    dataset: Dataset,
    config: StudentConfig,
    assembled_accuracy: float,
    accepted: dict[str, BlockResult],
    emit: Emit,
) -> tuple[dict[str, float], ...]:
    """Train the student on the labels (cross entropy) and leave it at its best epoch, which may be the start.

    Returns:
        Loss and accuracy per epoch; empty where there was nothing to tune.
    """
    if config.fine_tune_epochs == 0 or not accepted:
        return ()
    trainable = {layer.name: layer.trainable for layer in model.layers}
    freeze_outside(model, accepted, config.fine_tune_scope)
    rate = config.fine_tune_learning_rate
    history = fit_on_labels(
        model, dataset, config.fine_tune_epochs, rate, emit, "fine-tuning", starting_accuracy=assembled_accuracy
    )
    for layer in model.layers:
        layer.trainable = trainable[layer.name]
    return history


@dataclass(frozen=True)
class Student:
    """The finished network, and how it came to be."""

    model: keras.Model
    """Not compiled: its file holds no optimiser."""
    assembled_accuracy: float
    """Validation accuracy before fine-tuning."""
    val_accuracy: float
    history: tuple[dict[str, float], ...]
    """Of the fine-tuning, per epoch."""


def make(
    teacher: keras.Model,
    dataset: Dataset,
    tasks: Iterable[LayerTask],
    accepted: dict[str, BlockResult],
    config: RunConfig,
    display: ProgressDisplay,
) -> Student:
    """Put the accepted blocks into the teacher's place, re-estimate their statistics, and fine-tune the whole."""
    keras.utils.set_random_seed(blocks.derive_seed(config.seed, "student"))  # for layers such as dropout
    model = assemble(teacher, tasks, accepted, config.blocks.block)
    images = (batch for batch, _ in dataset.batches("train", limit=STATISTICS_IMAGES))
    reestimate_statistics(model, accepted, images)
    assembled_accuracy = evaluation.accuracy(model, dataset.batches("validation"))
    display.phase(f"assembled {len(accepted)} accepted blocks: validation accuracy {assembled_accuracy:.4f}")
    history = fine_tune(model, dataset, config.student, assembled_accuracy, accepted, display.update)
    reached = max([assembled_accuracy, *(row["val_accuracy"] for row in history)])
    display.phase(f"fine-tuned for {len(history)} epochs: validation accuracy {reached:.4f}")
    return Student(graph.flatten(model), assembled_accuracy, reached, history)
