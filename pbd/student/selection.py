"""Select the trained blocks that are accepted: for each layer the one that computes least, or none."""

from collections.abc import Iterable, Mapping

from pbd.records import RESIDUAL, BlockKey, BlockResult, BlockTask

ROUNDING = 1e-9
"""Tolerance with which a threshold counts as reached."""


def accept(
    tasks: Iterable[BlockTask], results: Mapping[BlockKey, BlockResult], lowest: float
) -> dict[str, BlockResult]:
    """Return the accepted block of each layer, by layer; a layer without one keeps its convolution.

    A block can be accepted if the teacher with only this block still reaches a validation accuracy. Of such blocks of a
    layer, the one with the fewest multiply-accumulates is accepted; of several, the most accurate one. A block in place
    of a residual block excludes blocks inside it; the choice with fewer multiply-accumulates is accepted.

    Args:
        tasks: the tasks of the run.
        results: the results of the tasks.
        lowest: the lowest accuracy to accept; without labels, the lowest agreement.
    """
    best: dict[str, BlockTask] = {}
    for task in tasks:
        result = results.get(task.key)
        if result is None or not _passes(result, lowest):
            continue
        if task.layer.name not in best or _rank(task, results) < _rank(best[task.layer.name], results):
            best[task.layer.name] = task
    for residual in [task for task in best.values() if task.layer.kind == RESIDUAL]:
        inner = [task for task in best.values() if residual.layer.name in task.layer.inside]
        saved = sum(task.layer.macs - task.macs for task in inner)
        excluded = [residual] if residual.layer.macs - saved < residual.macs else inner
        best = {layer: task for layer, task in best.items() if task not in excluded}
    return {layer: results[task.key] for layer, task in best.items()}


def _passes(result: BlockResult, lowest: float) -> bool:
    return result.status == "trained" and result.score is not None and result.score >= lowest - ROUNDING


def _rank(task: BlockTask, results: Mapping[BlockKey, BlockResult]) -> tuple[int, float]:
    return task.macs, -(results[task.key].score or 0.0)
