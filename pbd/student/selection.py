"""Select the trained blocks that are accepted."""

from collections.abc import Iterable

from pbd.records import BlockResult

ROUNDING = 1e-9
"""Tolerance with which a threshold counts as reached."""


def accept(results: Iterable[BlockResult], lowest: float) -> dict[str, BlockResult]:
    """Return the trained blocks, by layer, with which the teacher still reaches a validation accuracy.

    Args:
        results: Of all tasks.
        lowest: The lowest accuracy to accept; without labels, the lowest agreement.
    """
    return {
        result.layer: result
        for result in results
        if result.status == "trained" and result.score is not None and result.score >= lowest - ROUNDING
    }
