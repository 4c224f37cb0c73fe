"""Pruning schedules: the ratio after each round."""


def cubic(ratio: float, number: int, rounds: int, first: float | None = None) -> float:
    """Return the share that is pruned after a round: fast at first, slowly at the end.

    The schedule of automated gradual pruning (AGP; Zhu and Gupta 2017, arXiv:1710.01878).

    Args:
        ratio: the share after the last round.
        number: the number of the round, from 1.
        rounds: their number.
        first: the share after the first of several rounds; by default the schedule begins with nothing pruned, a round
            before the first one.
    """
    if first is None:
        return ratio * (1.0 - (1.0 - number / rounds) ** 3)
    return ratio + (first - ratio) * (1.0 - (number - 1) / (rounds - 1)) ** 3


def geometric(ratio: float, number: int, per_round: float) -> float:
    """Return the share that is pruned after a round that prunes the same share of what is left as all others.

    The schedule of Frankle and Carbin 2019, arXiv:1803.03635.

    Args:
        ratio: the most that is pruned.
        number: the number of the round, from 1.
        per_round: the share of what is left.
    """
    return min(ratio, 1.0 - (1.0 - per_round) ** number)
