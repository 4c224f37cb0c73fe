"""Comparison of epochs of fine-tuning: the best one, and one that diverged."""

import math

from pbd.learning.metrics import Metrics

COLLAPSE = 0.5
"""An epoch diverges if it keeps less than this share of the best score's lead over chance."""
MIN_LEAD = 0.1
"""Smaller leads over chance than this fluctuate; losing one is no divergence."""


def is_better(metrics: Metrics, best: Metrics, highest_score: float, tolerance: float) -> bool:
    """Return whether an epoch with these metrics is better than the best before it.

    Args:
        metrics: After the epoch.
        best: The best metrics before it.
        highest_score: The highest score so far, this epoch's included.
        tolerance: Epochs that score at most this much less than `highest_score` are ranked by their divergence from
            the teacher.
    """

    def rank(metrics: Metrics) -> tuple[float, float]:
        return min(metrics.score, highest_score - tolerance), -metrics.kl

    return rank(metrics) > rank(best)


def standard_error(score: float, images: int) -> float:
    """Return the standard error of a share of images, an accuracy or an agreement, after Agresti and Coull 1998.

    Two right and two wrong images are added, so that it is not zero for a perfect score.
    """
    share = (score * images + 2.0) / (images + 4.0)
    return math.sqrt(share * (1.0 - share) / (images + 4.0))


def divergence(metrics: Metrics, best: Metrics | None, chance: float) -> str | None:
    """Return why an epoch with these metrics diverged, or `None` if it did not.

    Args:
        metrics: After the epoch.
        best: The best metrics before it; None if a collapse is no divergence.
        chance: The score of a random guess.
    """
    if not math.isfinite(metrics.kl):
        return "the outputs are not finite numbers"
    if best is None:
        return None
    lead = best.score - chance
    if lead > MIN_LEAD and metrics.score - chance < COLLAPSE * lead:
        name = "agreement" if metrics.accuracy is None else "accuracy"
        return f"the {name} fell from {best.score:.4f} to {metrics.score:.4f}"
    return None
