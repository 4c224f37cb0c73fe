"""The scheme of arXiv:2012.03096, task by task: the baseline that pbd's grouped training is held against.

As in the authors' published code, a task is trained in rounds of two epochs. Each round loads the teacher from its file
and cuts it off behind the layer; every step computes that part of the teacher and trains one block on the layer's input
and output; a round ends with the whole teacher, the block in its layer's place, on the validation split. Tasks share
nothing: each has its own augmented images, and for first weights that are fitted its own statistics.

First weights, batches, optimiser, step and the choice of the best epoch are pbd's own, so that its blocks are those of
a grouped run, and what differs is how often the same things are computed. Where the authors waste time without need, it
does not follow them: the part of the teacher and the block's step are one graph, the teacher is loaded once a round
(not twice), and the block and its optimiser stay in memory.
"""

from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.blocks.initialisation import FIT_IMAGES, initialise
from pbd.blockwise.context import TrainingContext, load_dataset
from pbd.blockwise.distiller import STOPPING_IMAGES, GroupDistiller
from pbd.data import Dataset
from pbd.learning import metrics
from pbd.learning.early_stopping import LearningCurve
from pbd.learning.loop import adam
from pbd.networks import graph
from pbd.networks.cost import layer_calls
from pbd.networks.keras_internals import walk
from pbd.records import BlockResult, BlockTask, ProgressCallback, TaskGroup
from pbd.system import devices

ROUND_EPOCHS = 2
"""After how many epochs the teacher is loaded anew and the block evaluated in the whole network."""


def train_group(context: TrainingContext, group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
    """Train the tasks of a group one after another; what an executor runs, as it runs `training.train_group`."""
    dataset = load_dataset(context.data, context.seed, context.image_shape, context.session, context.journal)
    return [train_task(context, task, dataset) for task in group.tasks]


def train_task(context: TrainingContext, task: BlockTask, dataset: Dataset) -> BlockResult:
    """Train one block, write it to the run directory and return it, at the epoch with the lowest validation error.

    `nmse_history` stays empty: the errors are not normalised. The accuracy is the best that a round ended with.
    """
    epochs, name = context.training.block_epochs, task.layer.name
    design = context.designs[task.design]
    block = blocks.build_block(design, task.layer, context.seed)
    optimizer = adam(context.training.learning_rate, dataset.steps_per_epoch * epochs, block.trainable_variables)
    curve = LearningCurve(design.per_image and context.block_init != "noise")
    accuracies = []
    for first in range(0, epochs, ROUND_EPOCHS):
        teacher = keras.models.load_model(context.teacher_path, compile=False)
        prefix = graph.truncate(teacher, [name])
        if first == 0:
            _initialise(context, task, block, teacher, prefix, dataset)
        distiller = GroupDistiller(prefix, {task.key: block})
        distiller.compile(optimizer, jit_compile=devices.compiles_with_xla())
        if first == 0 and curve.include_start:
            curve.add(_validation_error(distiller, dataset), block.get_weights())
        for epoch in range(first, min(first + ROUND_EPOCHS, epochs)):
            loss = _one_epoch(distiller, dataset, epoch)
            curve.add(_validation_error(distiller, dataset), block.get_weights(), loss)
        accuracies.append(_accuracy(teacher, name, block, dataset))
    block.set_weights(curve.best_weights)
    result = BlockResult(
        layer=name,
        status="trained",
        design=task.design,
        weights=blocks.get_weights(block),
        loss_history=tuple(curve.losses),
        val_accuracy=max(accuracies),
    )
    context.journal.commit_block(result)
    return result


def _initialise(
    context: TrainingContext,
    task: BlockTask,
    block: keras.Model,
    teacher: keras.Model,
    prefix: keras.Model,
    dataset: Dataset,
) -> None:
    images = (batch for batch, _ in dataset.batches("train", limit=FIT_IMAGES))
    built = {task.key: block}
    initialise(built, [task], context.designs, teacher, prefix, images, context.block_init, context.seed)


def _one_epoch(distiller: GroupDistiller, dataset: Dataset, epoch: int) -> float:
    """Train for one epoch; return the block's mean squared error."""
    history = distiller.fit(
        dataset.training_batches(epoch, epoch + 1),
        initial_epoch=epoch,
        epochs=epoch + 1,
        steps_per_epoch=dataset.steps_per_epoch,
        shuffle=False,
        verbose=0,
    ).history
    return float(history[str(distiller.keys[0])][0])


def _validation_error(distiller: GroupDistiller, dataset: Dataset) -> float:
    """Return the block's mean squared error on the images by which the best epoch is chosen."""
    batches = dataset.batches("validation", limit=STOPPING_IMAGES)
    return float(np.mean(np.hstack([distiller.predict_on_batch(images) for images, _ in batches])))


def _accuracy(teacher: keras.Model, name: str, block: keras.Model, dataset: Dataset) -> float:
    """Return the validation accuracy of the whole teacher with the block in its layer's place."""
    whole = keras.Model(teacher.inputs[0], output_with(teacher, name, block))
    whole.compile(jit_compile=devices.compiles_with_xla())
    return metrics.accuracy(whole, dataset.batches("validation"))


def output_with(model: keras.Model, layer_name: str, block: keras.Model) -> Any:
    """Return the model's output tensor with a block in a layer's place; it hangs on the model's own graph and layers.

    For many blocks at once see `variants`.
    """
    changed: set[int] = set()
    several_calls = {id(layer) for layer, calls in layer_calls(model) if calls > 1}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name == layer_name:
            outputs = block(args[0])
        elif any(id(tensor) in changed for tensor in keras.tree.flatten((args, kwargs))):
            outputs = operation(*args, **kwargs)
        else:
            return operation(*args, **kwargs) if id(operation) in several_calls else operation.output
        changed.update(id(tensor) for tensor in keras.tree.flatten(outputs))
        return outputs

    return keras.tree.flatten(walk(model, model.inputs, call))[0]
