"""SVCCA: how similar the activations of two layers are, up to a linear map (Raghu et al. 2017, arXiv:1706.05806).

The directions that keep 99% of the variance of each layer's activations are found by a singular value decomposition
(SVD). Canonical correlation analysis (CCA) then pairs directions of the two layers so that they correlate as much as
possible. The similarity is the mean of these correlations, and the distance is one minus the similarity. As in
google/svcca, with one difference: the singular vectors are orthonormal, so the correlations are the singular values of
their product, and no covariance is inverted.
"""

import numpy as np

from pbd.analysis.centring import centred

VARIANCE = 0.99
"""Share of the variance that the directions of a layer keep."""


def directions(activations: np.ndarray, variance: float = VARIANCE) -> np.ndarray:
    """Return the fewest principal directions that keep a share of the variance, as orthonormal rows.

    Args:
        activations: (neurons, images), real or complex.
        variance: the share, in (0, 1]. With 1, only directions without variance are left out: plain CCA.

    Returns:
        (directions, images); no row if all neurons are constant or a value is not finite.
    """
    matrix = np.asarray(activations)
    if not np.isfinite(matrix).all():
        return np.zeros((0, matrix.shape[1]))
    _, scales, rows = np.linalg.svd(centred(matrix), full_matrices=False)
    rank = int(np.sum(scales > max(matrix.shape) * np.finfo(np.float64).eps * scales[0]))
    if rank == 0:
        return rows[:0]
    kept = np.cumsum(scales[:rank] ** 2)
    enough = int(np.searchsorted(kept, variance * kept[-1])) + 1
    return rows[: min(enough, rank)]


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the canonical correlations of two layers, given their directions (see `directions`), largest first.

    Returns:
        As many as the layer with fewer directions has.
    """
    if not len(first) or not len(second):
        return np.zeros(0)
    return np.clip(np.linalg.svd(first @ second.conj().T, compute_uv=False), 0.0, 1.0)


def similarity(first: np.ndarray, second: np.ndarray, variance: float = VARIANCE) -> float | None:
    """Return the mean canonical correlation of two layers; `None` if one of them is constant.

    Args:
        first: activations, (neurons, images).
        second: the activations of the other layer for the same images; the number of neurons may differ.
        variance: see `directions`.
    """
    return mean(correlations(directions(first, variance), directions(second, variance)))


def mean(values: np.ndarray) -> float | None:
    """Return the mean of canonical correlations; `None` of none."""
    return float(values.mean()) if values.size else None


def fourier_similarity(first: np.ndarray, second: np.ndarray, variance: float = VARIANCE) -> float | None:
    """Return the mean over frequencies of the similarity of two layers' Fourier coefficients.

    For images whose statistics do not change under translation, this is the similarity of all neurons of all positions.
    Of feature maps of different sizes, the frequencies that both have are compared, as in google/svcca.

    Args:
        first: activations, (images, height, width, channels).
        second: the activations of the other layer for the same images.
        variance: see `directions`; of each frequency.

    Returns:
        `None` if no frequency varies in both layers.
    """
    height, width = (min(first.shape[axis], second.shape[axis]) for axis in (1, 2))
    spectra = [_spectrum(maps, height, width) for maps in (first, second)]
    values: dict[tuple[int, int], float | None] = {}
    rows, columns = _frequencies(height), _frequencies(width)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            mirrored = values.get((-row, -column))  # the conjugate coefficients, since activations are real
            here, there = (spectrum[:, i, j].T for spectrum in spectra)
            values[row, column] = similarity(here, there, variance) if mirrored is None else mirrored
    defined = [value for value in values.values() if value is not None]
    return float(np.mean(defined)) if defined else None


def _spectrum(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the Fourier coefficients of feature maps at the lowest frequencies, (images, height, width, channels)."""
    spectrum = np.fft.fft2(np.asarray(maps, np.float64), axes=(1, 2))
    rows, columns = (
        np.isin(_frequencies(size), _frequencies(kept)).nonzero()[0]
        for size, kept in ((maps.shape[1], height), (maps.shape[2], width))
    )
    return spectrum[:, rows][:, :, columns]


def _frequencies(size: int) -> list[int]:
    """Return the frequencies of a transform of this size in its order: 0, 1, ..., -2, -1."""
    return [int(value) for value in np.rint(np.fft.fftfreq(size, 1 / size))]
