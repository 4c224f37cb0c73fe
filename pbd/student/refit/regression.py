"""Least-squares corrections of a kernel, from sums over patches, with a ridge that is chosen on other images."""

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from pbd.collective import Collective, all_reduce_sums

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the ridge, as multiples of the mean eigenvalue."""


@dataclass
class PairSums:
    """Sums over pairs of an input patch p, (values,), and what the output lacks there, e, (channels,), in float64."""

    values: int
    channels: int
    sums: list[np.ndarray] = field(init=False)
    """Of 1, p, e, p p^T, p e^T, and the squares of e."""

    def __post_init__(self) -> None:
        shapes = (
            (),
            (self.values,),
            (self.channels,),
            (self.values,) * 2,
            (self.values, self.channels),
            (self.channels,),
        )
        self.sums = [np.zeros(shape) for shape in shapes]

    def add(self, patches: np.ndarray, errors: np.ndarray) -> None:
        """Add pairs.

        Args:
            patches: (pairs, values).
            errors: (pairs, channels).
        """
        terms = (
            np.float64(len(patches)),
            patches.sum(axis=0, dtype=np.float64),
            errors.sum(axis=0, dtype=np.float64),
            patches.T @ patches,
            patches.T @ errors,
            np.square(errors).sum(axis=0, dtype=np.float64),
        )
        self.sums = [total + term for total, term in zip(self.sums, terms, strict=True)]

    def reduced(self, collective: Collective) -> "PairSums":
        """Return the sums over all members of a collective."""
        return self._with(all_reduce_sums(collective, self.sums))

    def __add__(self, other: "PairSums") -> "PairSums":
        return self._with([one + two for one, two in zip(self.sums, other.sums, strict=True)])

    def _with(self, sums: list[np.ndarray]) -> "PairSums":
        pairs = PairSums(self.values, self.channels)
        pairs.sums = sums
        return pairs

    def moments(self, centred: bool) -> "Moments":
        """Return the means; with `centred`, those of products are covariances."""
        pairs = max(float(self.sums[0]), 1.0)
        patch, error, second, cross, squares = (each / pairs for each in self.sums[1:])
        if centred:
            second, cross = second - np.outer(patch, patch), cross - np.outer(patch, error)
            squares = squares - error**2
        return Moments(patch, error, second, cross, float(squares.sum()))


@dataclass(frozen=True)
class Moments:
    """Means over pairs of a patch and what the output lacks there."""

    patch: np.ndarray
    """(values,)."""
    error: np.ndarray
    """(channels,)."""
    second: np.ndarray
    """Second moment or covariance of the patches, (values, values)."""
    cross: np.ndarray
    """The same of patches and errors, (values, channels)."""
    energy: float
    """Mean square or variance of the errors, summed over channels."""

    def solve(self, ridge: float) -> np.ndarray:
        """Return the correction of the kernel that minimises the error, (values, channels)."""
        scale = np.trace(self.second) / len(self.second) + np.finfo(np.float32).tiny
        system = self.second + ridge * scale * np.eye(len(self.second))
        return scipy.linalg.solve(system, self.cross, assume_a="pos")

    def remaining(self, correction: np.ndarray) -> float:
        """Return the mean square of the error after a correction."""
        return float(self.energy + np.sum(correction * (self.second @ correction - 2 * self.cross)))


def correction(fitting: PairSums, held_out: PairSums, centred: bool) -> np.ndarray:
    """Return the correction of a kernel, (values, channels); zero if none lowers the error on the images held out.

    Few images determine a large kernel badly. Therefore the ridge is the one with the least error on images that were
    not fitted; the correction is then computed from all of them.

    Args:
        fitting: over the images to fit.
        held_out: over the others.
        centred: whether something adapts the mean of the output (a bias, or a normalisation).
    """
    train, test, both = (sums.moments(centred) for sums in (fitting, held_out, fitting + held_out))
    errors = {ridge: test.remaining(train.solve(ridge)) for ridge in RIDGES}
    best = min(errors, key=lambda ridge: errors[ridge])
    return both.solve(best) if errors[best] < test.energy else np.zeros_like(both.cross)
