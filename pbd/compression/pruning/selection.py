"""Selection of the channels that remain, by their scores."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from pbd.compression.importance import Values, normalised

FLOOR = 0.1
"""Least share of the channels of a group that remain where groups are compared with each other."""
Kept = Mapping[str, np.ndarray]
"""By group, the channels that remain, in order."""


def in_each_group(scores: Values, sizes: Mapping[str, int], share: float, unscored: int = 0) -> Kept:
    """Return the channels with the highest scores of each group; of equal ones, the first.

    Args:
        scores: the scores of the channels that are left.
        sizes: the sizes of the groups before anything was removed.
        share: the share of these sizes that is removed in all; at least one channel remains.
        unscored: not used: each group is treated by itself.
    """
    counts = {name: max(1, sizes[name] - round(share * sizes[name])) for name in scores}
    return {name: _highest(values, counts[name]) for name, values in scores.items()}


def over_all_groups(scores: Values, sizes: Mapping[str, int], share: float, unscored: int = 0) -> Kept:
    """Return the channels with the highest scores of all, which are normalised in each group.

    At least the share `FLOOR` of a group remains.

    Args:
        scores: the scores of the channels that are left, and of which some can be removed.
        sizes: the sizes of the groups before anything was removed.
        share: the share of all these sizes that is removed in all.
        unscored: channels that are left and have no scores, such as the last one of a group.
    """
    kept = {name: _highest(values, max(1, math.ceil(FLOOR * sizes[name]))) for name, values in scores.items()}
    total = sum(sizes.values())
    missing = total - round(share * total) - unscored - sum(map(len, kept.values()))
    others = [
        (-score, order, name, channel)
        for order, (name, values) in enumerate(scores.items())
        for channel, score in enumerate(normalised(values).tolist())
        if channel not in kept[name]
    ]
    for _, _, name, channel in sorted(others)[: max(0, missing)]:
        kept[name] = np.append(kept[name], channel)
    return {name: np.sort(channels) for name, channels in kept.items()}


SCOPES = {"layer": in_each_group, "global": over_all_groups}


def in_every_tensor(kept: Kept, scores: Values, tensors: Iterable[Mapping[str, np.ndarray]]) -> Kept:
    """Return the channels that remain if each tensor keeps one: where none would, the one with the highest score.

    Args:
        kept: the channels that were chosen.
        scores: the scores of all channels of these groups.
        tensors: by group, the channels of each tensor (see `Placements.tensors`).
    """
    complete = {name: set(channels.tolist()) for name, channels in kept.items()}
    for by_group in tensors:
        remain = [
            name for name, channels in by_group.items() if name not in kept or complete[name] & {*channels.tolist()}
        ]
        if not remain:
            pairs = [
                (scores[name][channel], name, channel)
                for name, channels in by_group.items()
                for channel in channels.tolist()
            ]
            _, name, channel = max(pairs)
            complete[name].add(channel)
    return {name: np.array(sorted(channels)) for name, channels in complete.items()}


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-values, kind="stable")[:count])
