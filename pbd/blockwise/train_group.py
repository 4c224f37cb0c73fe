"""A group of blocks from first weights to the run directory: begun, trained, scored, written."""

import math
import time
from dataclasses import replace

import keras
import numpy as np

from pbd import blocks, data
from pbd.blocks.initialisation import FIT_IMAGES, initialise
from pbd.blockwise.context import TrainingContext, load
from pbd.blockwise.distiller import fit, group_label, target_variances
from pbd.blockwise.scoring import Score, score
from pbd.collective import SINGLE, Collective, CollectiveAbortedError, CollectiveLostError, all_reduce_sums
from pbd.learning.early_stopping import LearningCurve
from pbd.networks import graph
from pbd.records import BlockResult, BlockTask, Progress, ProgressCallback, TaskGroup
from pbd.system import memory


def train_group(
    context: TrainingContext, group: TaskGroup, emit: ProgressCallback, collective: Collective = SINGLE
) -> list[BlockResult]:
    """Train and score the blocks of a group, and write each to the run directory the moment it is done.

    A group that cannot be trained together is tried task by task, so that one bad block costs only itself. A block that
    is in the run directory (its worker was lost before it could say so) is not trained again.

    Args:
        context: of the run.
        group: the tasks to train in one pass.
        emit: told of every step.
        collective: the workers that train the same group with the same arguments at the same time, each on its part
            of every batch; the blocks must be per-image.

    Returns:
        One result per task, `trained` or `failed`; `worker`, `started_s` and (unless it was found) `seconds` are the
        executor's to fill in.

    Raises:
        PbdError: this worker cannot load the teacher or the data.
        CollectiveLostError: another worker was lost.
    """
    committed = {task.key: context.journal.committed_block(task.key) for task in group.tasks}
    (seen,) = all_reduce_sums(collective, [np.array([result is not None for result in committed.values()], np.int64)])
    everywhere = dict(zip(committed, seen == collective.size, strict=True))  # nobody may take another's for done
    left = tuple(task for task in group.tasks if not everywhere[task.key])
    found = [replace(r, from_journal=True) for key, r in committed.items() if r is not None and everywhere[key]]
    return found + (_train(context, TaskGroup(left), emit, collective) if left else [])


def _train(
    context: TrainingContext, group: TaskGroup, emit: ProgressCallback, collective: Collective
) -> list[BlockResult]:
    began = time.monotonic()
    teacher, dataset = load(context)
    mine = dataset.shared(data.WorkerShare(collective.index, collective.size))
    try:
        results = _train_together(context, group, teacher, mine, emit, collective)
        peak_bytes = _most(collective, memory.peak_memory())  # and nobody has failed since the last sum
    except CollectiveLostError:
        raise
    except Exception as error:
        if not isinstance(error, CollectiveAbortedError):
            collective.abort()
        if len(group.tasks) > 1:
            return [result for task in group.tasks for result in _train(context, TaskGroup((task,)), emit, collective)]
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        (task,) = group.tasks
        return [BlockResult(task.layer.name, "failed", task.design, error=message)]
    results = [replace(result, peak_bytes=peak_bytes) for result in results]
    for result in results:
        if result.status == "trained" and collective.index == 0:
            context.journal.commit_block(replace(result, seconds=time.monotonic() - began))
    return results


def _most(collective: Collective, value: float) -> int:
    """Return the largest of what the members of a collective have."""
    return int(collective.all_reduce_sum(np.where(np.arange(collective.size) == collective.index, value, 0.0)).max())


def _train_together(
    context: TrainingContext,
    group: TaskGroup,
    teacher: keras.Model,
    dataset: data.Dataset,
    emit: ProgressCallback,
    collective: Collective,
) -> list[BlockResult]:
    designs = {task.layer.name: context.designs[task.design] for task in group.tasks}
    built = {
        task.layer.name: blocks.build_block(designs[task.layer.name], task.layer, context.seed) for task in group.tasks
    }
    prefix = graph.truncate(teacher, built)  # one model, since each is traced anew
    _give_first_weights(context, group, built, teacher, prefix, dataset, collective)
    variances = target_variances(prefix, dataset, collective)
    initialised = context.block_init != "noise"
    # Blocks with batch statistics have none before the first epoch, so their start is no candidate for the best epoch.
    curves = {name: LearningCurve(designs[name].per_image and initialised) for name in built}
    fit(context.training, teacher, built, dataset, variances, curves, emit, collective)
    total = dataset.steps_per_epoch * context.training.epochs
    emit(Progress(0, f"scoring {group_label(built)}", total, total, context.training.epochs))
    scores = score(teacher, built, dataset, collective)
    return [
        _result(task, built[task.layer.name], curves[task.layer.name], scores[task.layer.name]) for task in group.tasks
    ]


def _give_first_weights(
    context: TrainingContext,
    group: TaskGroup,
    built: dict[str, keras.Model],
    teacher: keras.Model,
    prefix: keras.Model,
    dataset: data.Dataset,
    collective: Collective,
) -> None:
    """Give each worker of the collective some of the blocks to begin, and everyone the weights of all."""
    own = group.tasks[collective.index :: collective.size]
    if own:
        mine = {task.layer.name: built[task.layer.name] for task in own}
        images = (batch for batch, _ in replace(dataset, worker=data.WHOLE).batches("train", limit=FIT_IMAGES))
        feeding = prefix if len(mine) == len(built) else graph.truncate(teacher, mine)
        initialise(mine, own, context.designs, teacher, feeding, images, context.block_init, context.seed)
    if collective.size > 1:
        names = {task.layer.name for task in own}
        weights = [w if name in names else 0.0 * w for name, block in built.items() for w in block.get_weights()]
        coming = iter(all_reduce_sums(collective, weights))
        for block in built.values():
            block.set_weights([next(coming) for _ in block.weights])


def _result(task: BlockTask, block: keras.Model, curve: LearningCurve, scored: Score) -> BlockResult:
    weights = blocks.get_weights(block)
    finite = math.isfinite(scored.nmse) and all(np.isfinite(value).all() for value in weights.values())
    failed = not finite or (curve.diverged and scored.nmse >= 1.0)  # a block that diverged may have been good before
    return BlockResult(
        layer=task.layer.name,
        status="failed" if failed else "trained",
        design=task.design,
        weights={} if failed else weights,
        loss_history=tuple(curve.losses),
        nmse_history=tuple(curve.errors),
        nmse=None if failed else scored.nmse,
        val_accuracy=None if failed else scored.marks.accuracy,
        val_agreement=None if failed else scored.marks.agreement,
        val_kl=None if failed else scored.marks.kl,
        error="training diverged, and no epoch was better than a constant. Lower --learning-rate." if failed else None,
    )
