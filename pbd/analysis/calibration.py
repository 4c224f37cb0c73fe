"""Calibration of a network's confidence against its accuracy (Guo et al. 2017, arXiv:1706.04599)."""

import numpy as np

BINS = 15


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the mean difference of confidence and accuracy over bins, weighted by the images in each.

    Args:
        probabilities: the probabilities of the classes, (images, classes); the confidence of an image is its largest
            one.
        labels: (images,).
        bins: number of bins of equal width; bin m holds the confidences in ((m - 1) / bins, m / bins].
    """
    confidence, predicted = probabilities.max(-1), probabilities.argmax(-1)
    positions = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    excess = np.bincount(positions, weights=(predicted == labels) - confidence, minlength=bins)
    return float(np.abs(excess).sum() / len(labels))
