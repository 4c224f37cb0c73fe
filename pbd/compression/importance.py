"""Scores of channels: how much a network loses if a channel is removed. One function for each importance."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.compression.pruning import gates
from pbd.networks.channels import ChannelGroup, Placement, find_placements, kernels
from pbd.pipeline.remote_tasks import Measure

Values = Mapping[str, np.ndarray]
"""By name of a group, one score for each of its channels, (channels,), at least 0."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network whose channels are scored, and what an importance may look at."""

    model: keras.Model
    """Flat and functional."""
    groups: tuple[ChannelGroup, ...]
    """The groups to score; channels can be removed from each."""
    seed: int
    measure: Callable[[Measure], Any]
    """Calls a picklable function on all workers, with the network, the teacher and the images."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The importance of each channel or layer, with notes."""

    values: Values
    events: tuple[str, ...] = field(default=())
    """Notes for the report, one line each."""


Importance = Callable[[Subject], Scores]
IMPORTANCES: dict[str, Importance] = {}
"""The importances by their names in settings."""


def register(name: str) -> Callable[[Importance], Importance]:
    """Decorate an importance: settings find it by this name."""

    def add(function: Importance) -> Importance:
        IMPORTANCES[name] = function
        return function

    return add


@register("l1")
def l1(subject: Subject) -> Scores:
    """Sum of the absolute weights of a filter (Li et al. 2017, arXiv:1608.08710)."""
    return Scores(_of_filters(subject, lambda filters: np.abs(filters).sum(axis=1)))


@register("l2")
def l2(subject: Subject) -> Scores:
    """Euclidean norm of a filter (He et al. 2018, arXiv:1808.06866)."""
    return Scores(_of_filters(subject, lambda filters: np.linalg.norm(filters, axis=1)))


@register("geometric_median")
def geometric_median(subject: Subject) -> Scores:
    """Sum of the distances of a filter to all others of its layer (FPGM, He et al. 2019, arXiv:1811.00250).

    The filters with the smallest sums are nearest to the geometric median: others can represent them.
    """
    return Scores(_of_filters(subject, distances))


@register("batch_norm")
def batch_norm(subject: Subject) -> Scores:
    """Absolute scale of the batch normalisation of a channel (network slimming, Liu et al. 2017, arXiv:1708.06519).

    A group with channels that no batch normalisation scales gets the scores of `l1`.
    """
    scaled = [each for each in find_placements(subject.model).normalisations if each.layer.scale]
    values, events, norms = dict[str, np.ndarray](), list[str](), l1(subject).values
    for group in subject.groups:
        of_group = [each for each in scaled if each.group == group.name]
        covered = np.unique(np.concatenate([np.zeros(0, int), *(each.channels for each in of_group)]))
        if len(covered) == group.size:
            values[group.name] = _added(group, of_group, lambda layer: np.abs(keras.ops.convert_to_numpy(layer.gamma)))
        else:
            values[group.name] = norms[group.name]
            events.append(f"{group.name}: no batch normalisation scales all its channels, so they get the L1 norm")
    return Scores(values, tuple(events))


@register("taylor")
def taylor(subject: Subject) -> Scores:
    """Mean squared derivative of the loss by a gate on a channel (Molchanov et al. 2019, arXiv:1906.10771).

    It is the squared first-order estimate of what the cross entropy of an image changes by if the channel is removed.
    The labels are those of the data or, without, the classes of the teacher.
    """
    names = tuple(group.name for group in subject.groups)
    return Scores(subject.measure(functools.partial(gates.squared_derivatives, names=names)))


@register("random")
def random(subject: Subject) -> Scores:
    """Random numbers, which depend on the seed and the name of the group alone: what any importance must improve on."""
    draws = {group: np.random.default_rng(blocks.derive_seed(subject.seed, group.name)) for group in subject.groups}
    return Scores({group.name: draw.random(group.size) for group, draw in draws.items()})


def distances(filters: np.ndarray) -> np.ndarray:
    """Return the sum of the Euclidean distances of each filter to all others, (filters,).

    Args:
        filters: (filters, values).
    """
    filters = filters.astype(np.float64)
    squares = np.square(filters).sum(axis=1)
    products = squares[:, None] + squares[None, :] - 2.0 * filters @ filters.T
    np.fill_diagonal(products, 0.0)
    return np.sqrt(np.maximum(products, 0.0)).sum(axis=1)


def normalised(scores: np.ndarray) -> np.ndarray:
    """Return the scores of a group for a comparison with those of others: divided by their Euclidean norm.

    The layer-wise normalisation of Molchanov et al. 2017, arXiv:1611.06440.
    """
    norm = float(np.linalg.norm(scores))
    return scores / norm if norm > 0 else scores


def _of_filters(subject: Subject, score: Callable[[np.ndarray], np.ndarray]) -> Values:
    """Return the scores of channels by the filters that make them."""
    producers = find_placements(subject.model).producers
    return {
        group.name: _added(
            group,
            [each for each in producers if each.group == group.name],
            lambda layer: score(kernels.filters(layer)),
        )
        for group in subject.groups
    }


def _added(
    group: ChannelGroup, placements: Iterable[Placement], score: Callable[[keras.Layer], np.ndarray]
) -> np.ndarray:
    """Return the scores of one layer; those of several are divided by their mean in each layer, and added up."""
    placements = list(placements)
    total = np.zeros(group.size)
    for each in placements:
        values = np.asarray(score(each.layer), np.float64)[each.positions]
        mean = values.mean() if len(placements) > 1 else 1.0
        np.add.at(total, each.channels, values / mean if mean > 0 else values)
    return total
