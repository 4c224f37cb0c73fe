"""Choose the input channels of a convolution that are read, and refit its kernel to them, in NumPy alone.

He et al. 2017 (arXiv:1707.06168) and ThiNet (Luo et al. 2017, arXiv:1707.06342) also choose channels by the error of
the layer's output and refit the kernel by least squares. Here the choice is a backward elimination with the exact error
of each removal: the optimal brain surgeon (Hassibi and Stork 1993) for the weights of a whole channel.

If p is an input patch, W the kernel and X a kernel that is zero where it reads a removed channel, the error is
quadratic, with M the second moment of patches:

    E |W^T p - X^T p|^2 = tr((W - X)^T M (W - X)),    M = E[p p^T].

Let B be the X of least error, and H the inverse of M over the channels that are left. To remove a channel c, and to
refit the others, raises the error by tr(B_c^T (H_cc)^-1 B_c), and changes both by a Schur complement:

    H <- H - H_.c (H_cc)^-1 H_c.,    B <- B - H_.c (H_cc)^-1 B_c.
"""

import numpy as np

from pbd.blocks.decoupling import RIDGE

ONE_BY_ONE = 128
"""Up to this number of channels, one is removed in each step; of more, as many as this number is contained in them."""


def by_norm(kernel: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` channels whose weights have the largest norm, in order.

    Args:
        kernel: (channels, positions, outputs).
        count: the number of channels to keep.
    """
    norms = np.square(kernel).sum(axis=(1, 2))
    return np.sort(np.argsort(-norms, kind="stable")[:count])


def by_error(kernel: np.ndarray, moment: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` channels that are left if those whose removal raises the error least are removed, in order.

    Args:
        kernel: (channels, positions, outputs).
        moment: the second moment of patches, (channels x positions, channels x positions), channel by channel.
        count: the number of channels to keep.
    """
    channels = len(kernel)
    left = _Remaining(kernel, _inverse(ridged(moment)), channels - count)
    at_once = max(1, channels // ONE_BY_ONE)
    for first in range(0, channels - count, at_once):
        left.remove(left.least_errors(min(at_once, channels - count - first)))
    return np.flatnonzero(left.mask)


def best(kernel: np.ndarray, moment: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` channels and their refitted weights: of the choices `by_error` and `by_norm`, the better one.

    A greedy choice is not always the best, so `by_error` can lose to `by_norm`; the result never does.

    Args:
        kernel: (channels, positions, outputs).
        moment: the second moment of patches, (channels x positions, channels x positions), channel by channel.
        count: the number of channels to keep.

    Returns:
        The channels in order, and weights of shape (count, positions, outputs).
    """
    choices = [by_error(kernel, moment, count), by_norm(kernel, count)]
    refitted = [(kept, refit(kernel, moment, kept)) for kept in choices]
    return min(refitted, key=lambda choice: refit_error(kernel, moment, *choice))  # the first if they are equal


def refit(kernel: np.ndarray, moment: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the weights of the kept channels for which the error is least, (kept channels, positions, outputs).

    Args:
        kernel: (channels, positions, outputs).
        moment: the second moment of patches, (channels x positions, channels x positions), channel by channel.
        kept: channels.
    """
    channels, positions, outputs = kernel.shape
    rows = (kept[:, None] * positions + np.arange(positions)).ravel()
    metric = ridged(moment)
    cross = metric[rows] @ kernel.reshape(channels * positions, outputs)
    return np.linalg.solve(metric[np.ix_(rows, rows)], cross).reshape(len(kept), positions, outputs)


def refit_error(kernel: np.ndarray, moment: np.ndarray, kept: np.ndarray, weights: np.ndarray) -> float:
    """Return the error tr((W - X)^T M (W - X)) of weights of the kept channels, with the ridge of `refit` in M.

    Args:
        kernel: W, (channels, positions, outputs).
        moment: M, of patches, (channels x positions, channels x positions), channel by channel.
        kept: channels.
        weights: X on these channels, (kept channels, positions, outputs).
    """
    residual = kernel.copy()
    residual[kept] -= weights
    residual = residual.reshape(len(moment), -1)
    return float(np.sum(residual * (ridged(moment) @ residual)))


def ridged(moment: np.ndarray) -> np.ndarray:
    """Return a moment that has an inverse even if some inputs are always zero."""
    ridge = RIDGE * np.trace(moment) / len(moment) + np.finfo(np.float32).tiny
    return moment + ridge * np.eye(len(moment))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a positive definite matrix, from its Cholesky factor.

    Raises:
        np.linalg.LinAlgError: it is not positive definite.
    """
    from scipy.linalg import lapack  # takes long to load

    factor, failed = lapack.dpotrf(matrix, lower=True)
    inverse, failed = lapack.dpotri(factor, lower=True) if not failed else (factor, failed)
    if failed:
        raise np.linalg.LinAlgError("the second moment of patches is not positive definite")
    lower = np.tril(inverse)
    return lower + np.tril(inverse, -1).T


class _Remaining:
    """The channels that are left, with the refitted kernel B and the inverse H.

    H is H_0 - F F^T with the first inverse H_0 and a factor F that gets `positions` columns for each removed channel.
    A removal needs the columns of H for one channel only, and the error of all others only its diagonal blocks.

    Args:
        kernel: (channels, positions, outputs).
        inverse: H_0, of the second moment of patches.
        removals: the number of channels that will be removed.
    """

    def __init__(self, kernel: np.ndarray, inverse: np.ndarray, removals: int) -> None:
        channels, self._positions, _ = kernel.shape
        self.mask = np.ones(channels, bool)
        self._kernel = kernel.reshape(len(inverse), -1).copy()
        self._inverse = inverse
        by_channel = inverse.reshape(channels, self._positions, channels, self._positions)
        self._diagonal = by_channel[np.arange(channels), :, np.arange(channels)].copy()
        self._factor = np.empty((len(inverse), removals * self._positions))
        self._filled = 0

    def least_errors(self, count: int) -> np.ndarray:
        """Return the `count` remaining channels of which the removal of one raises the error least."""
        left = np.flatnonzero(self.mask)
        weights = self._kernel.reshape(len(self.mask), self._positions, -1)[left]
        products = weights @ weights.transpose(0, 2, 1)
        errors = np.einsum("cpq,cqp->c", np.linalg.inv(self._diagonal[left]), products)
        return left[np.argsort(errors, kind="stable")[:count]]

    def remove(self, channels: np.ndarray) -> None:
        """Remove channels and refit the others."""
        rows = (channels[:, None] * self._positions + np.arange(self._positions)).ravel()
        before = self._factor[:, : self._filled]
        columns = self._inverse[:, rows] - before @ before[rows].T
        lower = np.linalg.cholesky(columns[rows])
        added = np.linalg.solve(lower, columns.T).T  # its product with its transpose is H_.c (H_cc)^-1 H_c.
        self._kernel -= added @ np.linalg.solve(lower, self._kernel[rows])
        by_channel = added.reshape(len(self.mask), self._positions, -1)
        self._diagonal -= by_channel @ by_channel.transpose(0, 2, 1)
        self._factor[:, self._filled : self._filled + len(rows)] = added
        self._filled += len(rows)
        self.mask[channels] = False
