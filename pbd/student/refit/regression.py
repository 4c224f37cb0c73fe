"""Least-squares corrections of a kernel, from sums over patches, with a ridge that is chosen on other images."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

from pbd.collective import Collective, all_reduce_sums

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the ridge, as multiples of the mean eigenvalue, in ascending order."""
FIRST_RIDGE = 3
"""Position of the ridge that is tried first; from there the search goes on as long as the error falls."""
MOST_CHANNELS = 64
"""Most output channels by which the ridge is chosen and the error is estimated."""
IN_FLOAT64 = 1024
"""Most values of a patch for which the ridge is chosen in float64; for more, float32 takes half of the time."""
ROWS = 2**14
"""Rows that are multiplied in float32 before they are added in float64."""


@dataclass(frozen=True)
class Moments:
    """Means over pairs of an input patch p, (values,), and what the output lacks there, e, (channels,), in float64."""

    pairs: float
    """Their number."""
    patch: np.ndarray
    """Mean of p, (values,)."""
    second: np.ndarray
    """Mean of p p^T, (values, values)."""
    error: np.ndarray
    """Mean of e, (channels,)."""
    cross: np.ndarray
    """Mean of p e^T, (values, channels)."""
    squares: np.ndarray
    """Mean square of e, (channels,)."""
    has_shift: bool
    """Whether something shifts the output, so that the mean of e does not count. The mean of p must be near 0 then."""

    @classmethod
    def of(cls, patches: np.ndarray, errors: np.ndarray, has_shift: bool, collective: Collective) -> "Moments":
        """Return the moments over the pairs of all members.

        Args:
            patches: (pairs, values), in float32; of this member.
            errors: (pairs, channels), likewise.
            has_shift: see `Moments`.
            collective: the members.
        """
        sums = [np.array(float(len(patches))), patches.sum(axis=0, dtype=np.float64), _product(patches, patches)]
        count, patch, second = all_reduce_sums(collective, sums)
        pairs, empty = max(float(count), 1.0), np.zeros(0)
        second /= pairs
        return cls(pairs, patch / pairs, second, empty, empty, empty, has_shift).with_errors(
            patches, errors, collective
        )

    def with_errors(self, patches: np.ndarray, errors: np.ndarray, collective: Collective) -> "Moments":
        """Return the moments of the same patches with other errors."""
        squares = np.square(errors).sum(axis=0, dtype=np.float64)
        sums = [errors.sum(axis=0, dtype=np.float64), _product(patches, errors), squares]
        error, cross, squares = (total / self.pairs for total in all_reduce_sums(collective, sums))
        return replace(self, error=error, cross=cross, squares=squares)

    @property
    def shift(self) -> np.ndarray:
        """The shift of the output, (channels,)."""
        return self.error if self.has_shift else np.zeros_like(self.error)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments over the pairs of both."""
        pairs = self.pairs + other.pairs
        shares = self.pairs / pairs, other.pairs / pairs
        names = ("patch", "second", "error", "cross", "squares")
        means = {name: shares[0] * getattr(self, name) + shares[1] * getattr(other, name) for name in names}
        return replace(self, pairs=pairs, **means)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of patches and errors; uncentred without a bias."""
        return self.cross - np.outer(self.patch, self.error) if self.has_shift else self.cross

    @property
    def energy(self) -> np.ndarray:
        """Variance of the errors per channel; uncentred without a bias."""
        return self.squares - self.error**2 if self.has_shift else self.squares

    def solver(self, ridge: float, precision: Any = np.float64) -> "Solver":
        """Return what solves the regression with a ridge.

        Raises:
            LinAlgError: the precision is too low for this ridge.
        """
        system: np.ndarray = self.second.astype(precision)
        scale = np.trace(self.second) / len(system) + np.finfo(np.float32).tiny
        system[np.diag_indices(len(system))] += precision(ridge * scale)
        return Solver(scipy.linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)[0])

    def remaining(self, change: np.ndarray, channels: slice = slice(None)) -> float:
        """Return the mean square of the error of some channels after a change of the kernel, summed over channels."""
        cross = self.covariance[:, channels]
        return float(self.energy[channels].sum() + np.sum(change * (self.second @ change - 2 * cross)))

    def share_left(self, kernel: np.ndarray, change: np.ndarray) -> float:
        """Return the mean square of the error after a change of a kernel, as a share of that of the kernel's output.

        Args:
            kernel: before the change, (values, channels).
            change: likewise.
        """
        channels = self.some_channels
        before, change = kernel[:, channels], change[:, channels]
        output = float(np.sum(before * (self.second @ before)))
        return self.remaining(change, channels) / max(output, float(np.finfo(np.float32).tiny))

    @property
    def some_channels(self) -> slice:
        """At most `MOST_CHANNELS` output channels, which stand for all."""
        return slice(None, None, -(-len(self.squares) // MOST_CHANNELS))


def _product(patches: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the sum of the outer products of rows; float32 rounds only sums of `ROWS` of them."""
    total = (patches[:ROWS].T @ others[:ROWS]).astype(np.float64)
    for start in range(ROWS, len(patches), ROWS):
        total += patches[start : start + ROWS].T @ others[start : start + ROWS]
    return total


@dataclass(frozen=True)
class Solver:
    """The Cholesky factor of a second moment with a ridge."""

    factor: np.ndarray

    def __call__(self, cross: np.ndarray) -> np.ndarray:
        """Return the change of the kernel that minimises the error, (values, channels), for a `Moments.covariance`."""
        cross = cross.astype(self.factor.dtype, copy=False)
        return scipy.linalg.cho_solve((self.factor, True), cross, check_finite=False)


def choose_ridge(fitting: Moments, held_out: Moments) -> float | None:
    """Return the ridge with the least error on images that were not fitted; `None` if none lowers it.

    Few images determine a large kernel badly. The error has one minimum over the ridges, or nearly so: the search
    starts at one of them and ends where the error rises on both sides.

    Args:
        fitting: over the images to fit.
        held_out: over the others.
    """
    channels = fitting.some_channels
    errors: dict[int, float] = {}

    def error(position: int) -> float:
        if position not in errors:
            errors[position] = _error(fitting, held_out, RIDGES[position], channels)
        return errors[position]

    best = FIRST_RIDGE
    for direction in (1, -1):
        while 0 <= best + direction < len(RIDGES) and error(best + direction) < error(best):
            best += direction
    return RIDGES[best] if error(best) < held_out.energy[channels].sum() else None


def _error(fitting: Moments, held_out: Moments, ridge: float, channels: slice) -> float:
    """Return the error on the images held out; infinite if float32, for large kernels, does not suffice."""
    precision = np.float32 if len(fitting.second) > IN_FLOAT64 else np.float64
    try:
        change = fitting.solver(ridge, precision)(fitting.covariance[:, channels])
    except np.linalg.LinAlgError:
        return math.inf
    return held_out.remaining(change.astype(np.float64), channels)
