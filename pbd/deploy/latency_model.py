"""What a network assembled from measured pieces takes: a base, and a scale times the sum of its pieces."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pbd.errors import UsageError

SCALE_DEVIATION = 0.1
"""How far the scale is expected to be from 1."""
NETWORK_DEVIATION = 0.03
"""How far networks are expected to be from the model, as a fraction of their time."""


class MeasuredNetwork(NamedTuple):
    """A network that was assembled and measured."""

    chosen: tuple[Hashable, ...]
    """Its pieces; one that occurs several times is listed as often."""
    seconds: float


@dataclass(frozen=True)
class LatencyModel:
    """Predicts seconds of a forward pass from the pieces of a network.

    The prediction is linear in the pieces, so that an integer program can choose them under a budget: the budget less
    `base_s`, and `piece_s` for each candidate.

    Example:
        >>> model = LatencyModel(times).corrected([MeasuredNetwork(teacher_pieces, teacher_s)])
        >>> model.predict(student_pieces)
        0.000231
    """

    times_s: Mapping[Hashable, float]
    """Seconds of each piece, measured alone (see `piece_times.measure`)."""
    base_s: float = 0.0
    """Seconds of what is not in pieces: the first and the last layers, additions, the call itself."""
    scale: float = 1.0
    """Seconds of a piece in a network for each second alone."""

    def piece_s(self, piece: Hashable) -> float:
        """Return the seconds that a piece adds to a network.

        Raises:
            UsageError: it was not measured.
        """
        if piece not in self.times_s:
            raise UsageError(f"a piece must be measured. Received: {piece!r}. Measure it with piece_times.measure.")
        return self.scale * self.times_s[piece]

    def predict(self, chosen: Iterable[Hashable]) -> float:
        """Return the seconds of a forward pass of a network of these pieces.

        Args:
            chosen: the pieces; one that occurs several times is listed as often.

        Raises:
            UsageError: one was not measured.
        """
        return self.base_s + sum(self.piece_s(piece) for piece in chosen)

    def corrected(self, measured: Sequence[MeasuredNetwork]) -> "LatencyModel":
        """Return the model with base and scale fitted to networks that were measured.

        The sum of the squared relative errors is minimised, with a scale near 1: one network decides the base almost
        alone, several decide the scale too. Give all networks measured so far, the teacher among them.

        Args:
            measured: at least one network.

        Raises:
            UsageError: there is none, one took no time, or a piece was not measured.
        """
        if not measured or min(network.seconds for network in measured) <= 0:
            raise UsageError(
                "the correction needs networks that took longer than 0 s. "
                f"Received: {[network.seconds for network in measured]}. Measure the teacher."
            )
        alone = replace(self, base_s=0.0, scale=1.0)
        seconds = np.array([network.seconds for network in measured])
        sums = np.array([alone.predict(network.chosen) for network in measured])
        rows = np.stack([np.ones_like(sums), sums], axis=1) / seconds[:, None]
        expected = np.array([0.0, NETWORK_DEVIATION / SCALE_DEVIATION])
        target = np.append(np.ones_like(sums), expected[1])
        (base_s, scale), *_ = np.linalg.lstsq(np.vstack([rows, expected]), target, rcond=None)
        return replace(self, base_s=float(base_s), scale=float(scale))

    def errors(self, measured: Sequence[MeasuredNetwork]) -> tuple[float, ...]:
        """Return the relative error of the prediction of each network: 0.05 if it is 5% above what was measured."""
        return tuple(self.predict(network.chosen) / network.seconds - 1 for network in measured)
