"""Train a group of blocks: initial weights, training, scoring, and the journal entry of each block."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras
import numpy as np

from pbd import blocks, data
from pbd.blocks.initialisation import FIT_IMAGES, initialise
from pbd.blockwise import context as contexts
from pbd.blockwise.context import TrainingContext, load
from pbd.blockwise.distiller import fit, group_label, target_variances
from pbd.blockwise.scoring import Score, score
from pbd.collective import SINGLE, Collective, CollectiveAbortedError, CollectiveLostError, all_reduce_sums
from pbd.errors import describe
from pbd.learning.batch_statistics import BatchStatistics
from pbd.learning.early_stopping import LearningCurve
from pbd.learning.ghost_batch_norm import SMALLEST
from pbd.networks import graph
from pbd.records import BlockKey, BlockResult, BlockTask, Progress, ProgressCallback, TaskGroup
from pbd.run_dir import error_files
from pbd.system import memory, watchdog

MOST_BYTES = 2000
"""Bytes of the reason for which training a block failed, as members of a collective exchange it."""
_DIVERGED = "training diverged, and no epoch was better than a constant. Lower --learning-rate."
_NOT_FINITE = (
    "its outputs or weights are not finite numbers before any training. Leave out its layer with --layers, or its "
    "design with --block."
)
_log = logging.getLogger(__name__)


def train_group(
    context: TrainingContext, group: TaskGroup, emit: ProgressCallback, collective: Collective = SINGLE
) -> list[BlockResult]:
    """Train and score the blocks of a group, and write each to the run directory as soon as it is done.

    If the group cannot be trained in one pass, its tasks are trained one by one, so that a task that fails does not
    affect the others. A block that the run directory already holds is not trained again; this happens if a worker was
    lost after it had written the block.

    Args:
        context: the context of the run.
        group: the tasks to train in one pass.
        emit: called after every step.
        collective: the workers that train the same group at the same time, each on its part of every batch. All
            members must call this function with the same arguments, and the blocks must be per-image.

    Returns:
        One result per task, `trained` or `failed`. The executor fills in `worker` and `started_s` of all results, and
        `seconds` of those that are not from the journal.

    Raises:
        PbdError: this worker cannot load the teacher or the data.
        CollectiveLostError: another member of the collective was lost.
    """
    committed = {task.key: context.journal.committed_block(task.key) for task in group.tasks}
    has_result = np.array([result is not None for result in committed.values()], np.int64)
    (members_with_result,) = all_reduce_sums(collective, [has_result])
    # A shared file system may show a new file to some members only. All members must train the same tasks.
    done = dict(zip(committed, members_with_result == collective.size, strict=True))
    remaining = tuple(task for task in group.tasks if not done[task.key])
    results = [replace(r, from_journal=True) for key, r in committed.items() if r is not None and done[key]]
    if remaining:
        results += _train_or_split(context, TaskGroup(remaining), _Emitter(emit), collective)
    return results


class _Emitter:
    """Calls `emit`, and keeps the error that `emit` raises: it ends the run, and is no failure of the group."""

    def __init__(self, emit: ProgressCallback) -> None:
        self._emit = emit
        self.error: Exception | None = None

    def __call__(self, event: Progress) -> None:
        try:
            self._emit(event)
        except Exception as error:
            self.error = error
            raise


def _train_or_split(
    context: TrainingContext, group: TaskGroup, emit: _Emitter, collective: Collective
) -> list[BlockResult]:
    """Train a group in one pass; if that fails, train its tasks one by one."""
    began = time.monotonic()
    teacher, dataset = load(context)
    results = _attempt(context, group, teacher, dataset, emit, collective)
    if isinstance(results, str) and len(group.tasks) > 1:
        singles = [TaskGroup((task,)) for task in group.tasks]
        return [result for single in singles for result in _train_or_split(context, single, emit, collective)]
    if isinstance(results, str):
        (task,) = group.tasks
        return [BlockResult(task.layer.name, "failed", task.design, error=_first_text(collective, results))]
    for result in results:
        if result.status == "trained" and collective.index == 0:
            context.journal.commit_block(replace(result, seconds=time.monotonic() - began))
    return results


def _attempt(
    context: TrainingContext,
    group: TaskGroup,
    teacher: keras.Model,
    dataset: data.Dataset,
    emit: _Emitter,
    collective: Collective,
) -> list[BlockResult] | str:
    """Return the results of a group that is trained in one pass, or the reason why that failed (see `_leave_pass`)."""
    part = dataset.shared(data.WorkerShare(collective.index, collective.size))
    target = error_files.ErrorTarget(context.journal, _group_name(group), collective.index, group.layer_names)
    try:
        with error_files.announced(target):
            results = _train_in_one_pass(context, group, teacher, part, emit, collective)
        # This sum also makes sure that no member has failed since the last one, so all return the same results.
        peak_bytes = _all_reduce_max(collective, memory.peak_memory())
    except CollectiveLostError:
        raise
    except Exception as error:
        contexts.forget_teacher()
        if error is emit.error:
            raise
        return _leave_pass(context, group, error, collective)
    return [replace(result, peak_bytes=peak_bytes) for result in results]


def _leave_pass(context: TrainingContext, group: TaskGroup, error: Exception, collective: Collective) -> str:
    """Let all members leave a pass that failed, and write the exception to the run directory.

    Returns:
        The line that describes the exception and names its file; empty if another member has it.
    """
    if isinstance(error, CollectiveAbortedError):
        return ""
    collective.abort()  # the others then fail in their next sum
    file = error_files.write(context.journal, _group_name(group), error, collective.index)
    reason = f"{describe(error)}. See {file} in the run directory." if file else f"{describe(error)}."
    _log.warning("training %s failed: %s", group_label(group.layer_names), reason)
    return reason


def _group_name(group: TaskGroup) -> str:
    """Return the name of a group in the names of error files: that of its first task, and how many others it has."""
    others = f"+{len(group.tasks) - 1}" if len(group.tasks) > 1 else ""
    return f"{group.tasks[0].key}{others}"


def _first_text(collective: Collective, text: str) -> str:
    """Return, in all members, the text of the first member whose text is not empty, cut off after `MOST_BYTES`."""
    texts = np.zeros((collective.size, MOST_BYTES), np.int64)
    encoded = text.encode()[:MOST_BYTES]
    texts[collective.index, : len(encoded)] = list(encoded)
    row = next(row for row in collective.all_reduce_sum(texts) if row.any())
    return bytes(row.astype(np.uint8)).rstrip(b"\0").decode(errors="ignore")


def _all_reduce_max(collective: Collective, value: float) -> int:
    """Return the largest of the members' values: each adds its own in its place of an array of zeros."""
    one_place_each = np.where(np.arange(collective.size) == collective.index, value, 0.0)
    return int(collective.all_reduce_sum(one_place_each).max())


def _train_in_one_pass(
    context: TrainingContext,
    group: TaskGroup,
    teacher: keras.Model,
    dataset: data.Dataset,
    emit: ProgressCallback,
    collective: Collective,
) -> list[BlockResult]:
    designs = {task.key: context.designs[task.design] for task in group.tasks}
    built = {task.key: blocks.build_block(designs[task.key], task.layer, context.seed) for task in group.tasks}
    prefix = graph.truncate(teacher, group.layer_names)  # used twice, since each new model is traced again
    _initialise(context, group, built, teacher, prefix, dataset, emit, collective)
    # The variances normalise the errors of the learning curves, which stay empty without epochs.
    variances = target_variances(prefix, dataset, collective) if context.training.block_epochs else {}
    closed_form = context.block_init != "noise"
    # Blocks with batch statistics have none before the first epoch, so their start is no candidate for the best epoch.
    curves = {key: LearningCurve(designs[key].per_image and closed_form) for key in built}
    fit(context.training, teacher, built, dataset, variances, curves, emit, collective)
    scores = score(teacher, built, dataset, collective, emit)
    return [_result(task, built[task.key], curves[task.key], scores[task.key]) for task in group.tasks]


def _initialise(
    context: TrainingContext,
    group: TaskGroup,
    built: dict[BlockKey, keras.Model],
    teacher: keras.Model,
    prefix: keras.Model,
    dataset: data.Dataset,
    emit: ProgressCallback,
    collective: Collective,
) -> None:
    """Set the initial weights of all blocks; each member of the collective computes those of some blocks."""
    # All blocks of a layer use the same statistics, so one member computes them all.
    my_layers = group.layer_names[collective.index :: collective.size]
    tasks = [task for task in group.tasks if task.layer.name in my_layers]
    if tasks:
        mine = {task.key: built[task.key] for task in tasks}
        # Always whole batches: the closed form must not depend on the number of workers.
        whole = replace(dataset, worker=data.WHOLE)
        images = (batch for batch, _ in whole.batches("train", limit=FIT_IMAGES))
        my_prefix = prefix if len(mine) == len(built) else graph.truncate(teacher, my_layers)
        initialise(mine, tasks, context.designs, teacher, my_prefix, images, context.block_init, context.seed, emit)
        if not context.training.block_epochs:
            _estimate_batch_statistics(context, mine, my_prefix, whole)
    if collective.size > 1:
        _share_weights(built, tasks, collective)


def _estimate_batch_statistics(
    context: TrainingContext, built: Mapping[BlockKey, keras.Model], prefix: keras.Model, dataset: data.Dataset
) -> None:
    """Give blocks that no epoch will train the batch statistics of their layers' inputs."""
    statistics = {
        key: BatchStatistics(block) for key, block in built.items() if not context.designs[key.design].per_image
    }
    if not statistics:
        return
    batch_size = max(dataset.batch_size, SMALLEST)  # one image of a 1x1 feature map has no variance
    for images, _ in replace(dataset, batch_size=batch_size).batches("train", limit=FIT_IMAGES):
        watchdog.touch()
        features = prefix.predict_on_batch(images)
        for key, of_block in statistics.items():
            of_block.add(features[key.layer][0])
    for of_block in statistics.values():
        of_block.assign()


def _share_weights(built: dict[BlockKey, keras.Model], tasks: Sequence[BlockTask], collective: Collective) -> None:
    """Give all members the weights of all blocks: the sum over the members, zero for blocks of other members."""
    mine = {task.key for task in tasks}
    weights = [w if key in mine else np.zeros_like(w) for key, block in built.items() for w in block.get_weights()]
    shared_weights = iter(all_reduce_sums(collective, weights))
    for block in built.values():
        block.set_weights([next(shared_weights) for _ in block.weights])


def _result(task: BlockTask, block: keras.Model, curve: LearningCurve, scored: Score) -> BlockResult:
    weights = blocks.get_weights(block)
    finite = math.isfinite(scored.nmse) and all(np.isfinite(value).all() for value in weights.values())
    # If training diverged, the best epoch may still be good: it counts if it is better than a constant (nMSE 1).
    failed = not finite or (curve.diverged and scored.nmse >= 1.0)
    return BlockResult(
        layer=task.layer.name,
        status="failed" if failed else "trained",
        design=task.design,
        weights={} if failed else weights,
        loss_history=tuple(curve.losses),
        nmse_history=tuple(curve.errors),
        nmse=None if failed else scored.nmse,
        val_accuracy=None if failed else scored.metrics.accuracy,
        val_agreement=None if failed else scored.metrics.agreement,
        val_kl=None if failed else scored.metrics.kl,
        error=(_DIVERGED if curve.diverged or curve.losses else _NOT_FINITE) if failed else None,
    )
