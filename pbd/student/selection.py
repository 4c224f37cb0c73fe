"""Which trained blocks are accepted."""

from collections.abc import Iterable

from pbd.records import BlockResult

ROUNDING = 1e-9
"""A threshold that is met exactly is met."""


def accept(results: Iterable[BlockResult], lowest: float) -> dict[str, BlockResult]:
    """Return the trained blocks with which the teacher still reaches this accuracy (or agreement), by layer."""
    return {
        result.layer: result
        for result in results
        if result.status == "trained" and result.score is not None and result.score >= lowest - ROUNDING
    }
