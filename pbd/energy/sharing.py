"""Who spent a host's joules: its workers in equal parts, and within a worker what it does at the time."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pbd.energy.readings import Reading


@dataclass(frozen=True)
class Span:
    """When a worker did one thing; a block in a group of four is a span, and so are the other three."""

    worker: int
    start_s: float
    """Seconds since the epoch."""
    end_s: float


@dataclass(frozen=True)
class Shares:
    """Joules; `None` each where the host is not measured, or not nearly all of the time."""

    spans_j: tuple[float | None, ...]
    """Of each span, in the order given."""
    busy_j: dict[int, float | None]
    """Of each worker while it was in any span."""
    idle_j: dict[int, float | None]
    """Of each worker while it was in none."""


def share_out(reading: Reading, spans: Sequence[Span], workers: Sequence[int]) -> Shares:
    """Return whose the joules of one host are; all together they are the reading's total.

    At every moment each worker, busy or idle, has an equal part of the host's power, since no meter tells workers
    apart; of a worker's part, each of its spans at that moment has an equal part.

    Args:
        reading: of the host, for as long as is shared out (see `Reading.of_host` and `Reading.between`).
        spans: what its workers did; what lies outside of the reading has no joules.
        workers: all that share the host.

    Example:
        >>> shares = share_out(whole.between(began_s, ended_s), [Span(0, began_s, began_s + 9.0)], workers=[0, 1])
    """
    if reading.total_j is None:
        return Shares((None,) * len(spans), dict.fromkeys(workers), dict.fromkeys(workers))
    spans_j, busy_j, idle_j = [0.0] * len(spans), dict.fromkeys(workers, 0.0), dict.fromkeys(workers, 0.0)
    start_s, end_s = reading.started_s, reading.ended_s
    moments = {start_s, end_s, *(moment for span in spans for moment in (span.start_s, span.end_s))}
    for begin, end in itertools.pairwise(sorted(moment for moment in moments if start_s <= moment <= end_s)):
        part_j = (reading.joules_at(end) - reading.joules_at(begin)) / len(workers)
        active = defaultdict(list)
        for number, span in enumerate(spans):
            if span.start_s <= begin and end <= span.end_s:
                active[span.worker].append(number)
        for worker in workers:
            (busy_j if active[worker] else idle_j)[worker] += part_j
            for number in active[worker]:
                spans_j[number] += part_j / len(active[worker])
    covered = (reading.covers(span.start_s, span.end_s) for span in spans)
    known_j = tuple(joules if whole else None for joules, whole in zip(spans_j, covered, strict=True))
    if not reading.covers(start_s, end_s):
        busy_j, idle_j = dict.fromkeys(workers), dict.fromkeys(workers)
    return Shares(known_j, busy_j, idle_j)
