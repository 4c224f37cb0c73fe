"""Activations centred over images: what SVCCA and CKA both begin with."""

import numpy as np

_ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Deviations from the mean, as a fraction of the largest value, up to which a neuron counts as constant."""


def centred(activations: np.ndarray) -> np.ndarray:
    """Return activations minus their means over images; those of a constant neuron are exactly 0.

    Args:
        activations: (neurons, images), real or complex.

    Returns:
        (neurons, images) float64 or complex128.
    """
    values = np.asarray(activations, np.result_type(activations, np.float64))
    deviations = values - values.mean(axis=1, keepdims=True)
    largest = np.abs(values).max(axis=1, keepdims=True)
    constant = np.abs(deviations).max(axis=1, keepdims=True) <= _ROUNDING * largest
    return np.where(constant, 0, deviations)
