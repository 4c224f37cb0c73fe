"""Predicted latency of a network assembled from measured pieces: a base, and a scale times their sum."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from pbd.errors import UsageError
from pbd.system import processor

SCALE_DEVIATION = 0.1
"""How far the scale is expected to be from 1."""
NETWORK_DEVIATION = 0.03
"""How far networks are expected to be from the model, as a fraction of their time."""


WARM_SHARE = 0.25
"""Networks whose weights fill up to this share of the cache of the CPU find all of them there in the next pass; those
whose weights do not fit into the cache, none. In between the share falls linearly (measured: VGG16, 6 to 56 MiB)."""


class PieceTime(NamedTuple):
    """How long a piece takes."""

    warm_s: float
    """Seconds that it adds to a forward pass if its weights are in the caches of the CPU since the pass before."""
    cold_s: float
    """The same if its weights have to be read from memory."""
    weight_bytes: int

    def less(self, seconds: float) -> "PieceTime":
        """Return the time of a piece that takes so many seconds less in a network than alone; it may be negative."""
        return self._replace(warm_s=self.warm_s - seconds, cold_s=self.cold_s - seconds)


class MeasuredNetwork(NamedTuple):
    """A network that was assembled and measured."""

    chosen: tuple[Hashable, ...]
    """Its pieces; one that occurs several times is listed as often."""
    seconds: float


@dataclass(frozen=True)
class LatencyModel:
    """Predicts seconds of a forward pass from the pieces of a network.

    For networks of about one size the prediction is linear in the pieces, so that an integer program can choose them
    under a budget: the budget less `base_s`, and `piece_s` for each candidate, with the coldness of the last solution.

    Example:
        >>> model = LatencyModel(times).corrected([MeasuredNetwork(teacher_pieces, teacher_s)])
        >>> model.predict(student_pieces)
        0.000231
    """

    times: Mapping[Hashable, PieceTime]
    """The times of each piece, measured alone (see `piece_times.measure`)."""
    base_s: float = 0.0
    """Seconds of what is not in pieces: the first and the last layers, the call itself."""
    scale: float = 1.0
    """Seconds of a piece in a network for each second alone."""
    cache_bytes: int = field(default_factory=processor.cache_bytes)
    """The bytes of the caches of the CPU."""

    def coldness(self, chosen: Iterable[Hashable]) -> float:
        """Return the share of the weights that a network reads from memory in each pass, in [0, 1].

        Raises:
            UsageError: a piece was not measured.
        """
        share = sum(self._time(piece).weight_bytes for piece in chosen) / self.cache_bytes
        return min(max((share - WARM_SHARE) / (1 - WARM_SHARE), 0.0), 1.0)

    def piece_s(self, piece: Hashable, coldness: float = 0.0) -> float:
        """Return the seconds that a piece adds to a network of this coldness.

        Raises:
            UsageError: it was not measured.
        """
        time = self._time(piece)
        return self.scale * (time.warm_s + coldness * (time.cold_s - time.warm_s))

    def predict(self, chosen: Iterable[Hashable]) -> float:
        """Return the seconds of a forward pass of a network of these pieces.

        Args:
            chosen: the pieces; one that occurs several times is listed as often.

        Raises:
            UsageError: one was not measured.
        """
        listed = tuple(chosen)
        coldness = self.coldness(listed)
        return self.base_s + sum(self.piece_s(piece, coldness) for piece in listed)

    def _time(self, piece: Hashable) -> PieceTime:
        if piece not in self.times:
            raise UsageError(f"a piece must be measured. Received: {piece!r}. Measure it with piece_times.measure.")
        return self.times[piece]

    def corrected(self, measured: Sequence[MeasuredNetwork]) -> "LatencyModel":
        """Return the model with base and scale fitted to networks that were measured.

        The sum of the squared relative errors is minimised, with a scale near 1 and a base of at least 0: one network
        decides the base almost alone, several decide the scale too. Give all networks measured so far, the teacher
        among them.

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
        system = np.vstack([rows, expected])
        (base_s, scale), *_ = np.linalg.lstsq(system, target, rcond=None)
        if base_s < 0:
            base_s, ((scale,), *_) = 0.0, np.linalg.lstsq(system[:, 1:], target, rcond=None)
        return replace(self, base_s=float(base_s), scale=float(scale))

    def errors(self, measured: Sequence[MeasuredNetwork]) -> tuple[float, ...]:
        """Return the relative error of the prediction of each network: 0.05 if it is 5% above what was measured."""
        return tuple(self.predict(network.chosen) / network.seconds - 1 for network in measured)
