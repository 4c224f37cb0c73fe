"""Select the trained blocks that are accepted: for each layer the one that computes least, or none."""

from collections.abc import Iterable, Mapping

from pbd.records import BlockKey, BlockResult, BlockTask

ROUNDING = 1e-9
"""Tolerance with which a threshold counts as reached."""


def accept(
    tasks: Iterable[BlockTask], results: Mapping[BlockKey, BlockResult], lowest: float
) -> dict[str, BlockResult]:
    """Return the accepted block of each layer, by layer; a layer without one keeps its convolution.

    A block can be accepted if the teacher with only this block still reaches a validation accuracy. Of such blocks of a
    layer, the one with the fewest multiply-accumulates is accepted; of several, the most accurate one.

    Args:
        tasks: of the run.
        results: of the tasks.
        lowest: the lowest accuracy to accept; without labels, the lowest agreement.
    """
    best: dict[str, tuple[tuple[int, float], BlockResult]] = {}
    for task in tasks:
        result = results.get(task.key)
        if result is None or result.status != "trained" or result.score is None or result.score < lowest - ROUNDING:
            continue
        rank = (task.macs, -result.score)
        if task.layer.name not in best or rank < best[task.layer.name][0]:
            best[task.layer.name] = rank, result
    return {layer: result for layer, (_, result) in best.items()}
