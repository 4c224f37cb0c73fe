"""Linear centred kernel alignment (CKA): how similar the activations of two layers are (Kornblith et al. 2019).

With X and Y the centred activations, (neurons, images), the alignment is |X Y^T|^2 / (|X X^T| |Y Y^T|) in Frobenius
norms, by neurons ("features" in arXiv:1905.00414), or <X^T X, Y^T Y> / (|X^T X| |Y^T Y|), by images ("examples"). Both
are the same number. It does not change if the neurons are rotated or all scaled by one factor; unlike that of SVCCA, it
changes with other linear maps.
"""

from dataclasses import dataclass

import numpy as np

from pbd.analysis.centring import centred


@dataclass(frozen=True, eq=False)
class Kernel:
    """A layer's activations in the smaller of two forms, with the norm of its kernel."""

    matrix: np.ndarray
    """Centred activations, (neurons, images), or the kernel of the images, (images, images)."""
    by_images: bool
    norm: float
    """0 if all neurons are constant."""


def kernel(activations: np.ndarray, by_images: bool | None = None) -> Kernel:
    """Return what the alignment of a layer is computed from.

    Args:
        activations: (neurons, images).
        by_images: the form; by default the smaller one.
    """
    matrix = np.asarray(activations)
    if not np.isfinite(matrix).all():
        return Kernel(np.zeros_like(matrix, np.float64), by_images=False, norm=0.0)
    matrix = centred(matrix)
    matrix = matrix / (np.abs(matrix).max() or 1.0)  # so that products neither overflow nor vanish
    neurons, images = matrix.shape
    if neurons > images if by_images is None else by_images:
        gram = matrix.T @ matrix
        return Kernel(gram, True, float(np.linalg.norm(gram)))
    return Kernel(matrix, False, float(np.linalg.norm(matrix @ matrix.T)))


def alignment(first: Kernel, second: Kernel) -> float | None:
    """Return the CKA of two layers for the same images; `None` if all neurons of one of them are constant."""
    if first.norm == 0 or second.norm == 0:
        return None
    if first.by_images and second.by_images:
        product = float(np.sum(first.matrix * second.matrix))
    elif first.by_images:
        product = float(np.sum((second.matrix @ first.matrix) * second.matrix))
    elif second.by_images:
        product = float(np.sum((first.matrix @ second.matrix) * first.matrix))
    else:
        product = float(np.sum((first.matrix @ second.matrix.T) ** 2))
    return min(product / (first.norm * second.norm), 1.0)


def similarity(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the CKA of two layers' activations, (neurons, images) each; the numbers of neurons may differ."""
    return alignment(kernel(first), kernel(second))
