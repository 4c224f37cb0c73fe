"""Choose one option for each part of a network: minimise the summed KL divergence under cost limits, exactly.

Parts i have options o with a damage d[i, o] and, for each resource, a cost c[i, o]. Some pairs of parts have further
costs, which depend on the options of both: the width of a layer's output is what its reader reads. With binary x[i, o]
and, for each such pair (i, j), weights z[o, p] of both options together,

    minimise    sum d[i, o] x[i, o]
    subject to  sum over o of x[i, o] = 1                                              for each part i,
                sum over (i, o) in G of x[i, o] = 1                                    for each group G of options,
                sum c[i, o] x[i, o] + sum C[o, p] z[o, p] <= limit                     for each limited resource,
                sum over p of z[o, p] = x[i, o],  sum over o of z[o, p] = x[j, p],  z >= 0   for each pair (i, j).

For binary x the last line makes z the product of both, and its relaxation is the tightest there is for one pair. The
problem is solved by HiGHS, through `scipy.optimize.milp`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from pbd.errors import PbdError

ROUNDING = 1e-9
"""Relative tolerance with which a limit counts as kept."""


class InfeasibleError(PbdError):
    """No choice keeps the limits. `least` is the least possible cost of each limited resource."""

    def __init__(self, least: Mapping[str, float]) -> None:
        super().__init__(f"no choice keeps the limits. Least possible: {dict(least)}.")
        self.least = dict(least)

    def __reduce__(self) -> tuple[type["InfeasibleError"], tuple[dict[str, float]]]:
        return type(self), (self.least,)


@dataclass(frozen=True)
class Coupling:
    """Costs that depend on the options of two parts."""

    first: int
    second: int
    costs: Mapping[str, np.ndarray]
    """The costs by resource, (options of the first part, options of the second)."""


@dataclass(frozen=True)
class Problem:
    """The parts of a network with the damage and the costs of their options."""

    damages: tuple[np.ndarray, ...]
    """The damages of each part, (options,); finite."""
    costs: Mapping[str, tuple[np.ndarray, ...]]
    """The costs by resource, for each part, (options,)."""
    couplings: tuple[Coupling, ...] = ()
    groups: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Groups of options, each a part and the number of its option; exactly one of each group is chosen."""
    base: Mapping[str, float] = field(default_factory=dict)
    """The cost of everything else, by resource."""

    def cost(self, resource: str, options: Sequence[int]) -> float:
        """Return the cost of a choice: an option for each part."""
        alone = sum(float(costs[option]) for costs, option in zip(self.costs[resource], options, strict=True))
        pairs = sum(float(c.costs[resource][options[c.first], options[c.second]]) for c in self.couplings)
        return self.base.get(resource, 0.0) + alone + pairs

    def damage(self, options: Sequence[int]) -> float:
        """Return the summed damage of a choice."""
        return sum(float(damages[option]) for damages, option in zip(self.damages, options, strict=True))


@dataclass(frozen=True)
class Choice:
    """A solution: the chosen option of each part, its total damage and its costs."""

    options: tuple[int, ...]
    damage: float
    costs: Mapping[str, float]
    """The costs by resource, with the base."""
    gap: float
    """By how much, as a fraction, the damage may exceed the least; 0 if it is proven to be the least."""
    seconds: float


def solve(problem: Problem, limits: Mapping[str, float]) -> Choice:
    """Return the choice of the least damage whose costs keep the limits.

    Args:
        problem: a problem of at least one part.
        limits: the largest allowed cost by resource, base included.

    Raises:
        InfeasibleError: no choice keeps them.
    """
    return next(best(problem, limits))


def best(problem: Problem, limits: Mapping[str, float]) -> Iterator[Choice]:
    """Yield distinct choices that keep the limits, in the order of their damage.

    Raises:
        InfeasibleError: no choice keeps the limits; not raised if there are no further ones.
    """
    excluded: list[tuple[int, ...]] = []
    while True:
        choice = _solved(problem, limits, excluded)
        if choice is None:
            break
        yield choice
        excluded.append(choice.options)
    if not excluded:
        raise InfeasibleError({resource: cheapest(problem, resource).costs[resource] for resource in limits})


def cheapest(problem: Problem, resource: str) -> Choice:
    """Return the choice that costs least of a resource; there must be one without limits."""
    zero = tuple(np.zeros(len(damages)) for damages in problem.damages)
    choice = _milp(replace(problem, damages=zero), {}, [], objective=resource)
    assert choice is not None
    return replace(choice, damage=problem.damage(choice.options))


def _solved(problem: Problem, limits: Mapping[str, float], excluded: Sequence[tuple[int, ...]]) -> Choice | None:
    """Return the best choice that is not excluded; the solver's tolerance must not exceed a limit."""
    tightened = dict(limits)
    for _ in range(20):
        choice = _least_damage(problem, tightened, excluded)
        if choice is None:
            return None
        exceeded = {name: choice.costs[name] / limit for name, limit in limits.items() if limit > 0}
        if all(ratio <= 1.0 + ROUNDING for ratio in exceeded.values()):
            return choice
        for name, ratio in exceeded.items():
            if ratio > 1.0 + ROUNDING:
                tightened[name] -= 2 * (choice.costs[name] - limits[name])
    return None


def _least_damage(problem: Problem, limits: Mapping[str, float], excluded: Sequence[tuple[int, ...]]) -> Choice | None:
    """Return the choice of the least damage; `None` if nothing keeps the limits.

    The solver's tolerances are absolute: a huge damage, which no good choice has, would hide differences of small ones.
    Damages are therefore cut off at twice that of the choice so far. A choice with one of them stays worse.
    """
    choice, cut = _milp(problem, limits, excluded), problem
    while choice is not None and 0 < 2 * choice.damage < max(float(damages.max()) for damages in cut.damages):
        highest = 2 * choice.damage
        cut = replace(problem, damages=tuple(np.minimum(damages, highest) for damages in problem.damages))
        again = _milp(cut, limits, excluded)
        if again is None or problem.damage(again.options) >= choice.damage:
            break
        seconds = choice.seconds + again.seconds
        choice = replace(again, damage=problem.damage(again.options), seconds=seconds)
    return choice


def _milp(
    problem: Problem, limits: Mapping[str, float], excluded: Sequence[tuple[int, ...]], objective: str | None = None
) -> Choice | None:
    """Minimise the damage, or the cost of the resource `objective`; return `None` if nothing keeps the limits."""
    began = time.perf_counter()
    counts = [len(damages) for damages in problem.damages]
    starts = np.concatenate([[0], np.cumsum(counts)])
    pair_starts = starts[-1] + np.concatenate(
        [[0], np.cumsum([counts[c.first] * counts[c.second] for c in problem.couplings])]
    )
    size = int(pair_starts[-1])

    def row(resource: str) -> np.ndarray:
        pairs = [coupling.costs[resource].ravel() for coupling in problem.couplings]
        return np.concatenate([*problem.costs[resource], *pairs]).astype(float)

    weights = np.concatenate([*problem.damages, np.zeros(size - starts[-1])]).astype(float)
    if objective is not None:
        weights = row(objective)
    constraints = [_one_of_each(problem, counts, starts, size), *_products(problem, counts, starts, pair_starts, size)]
    for resource, limit in limits.items():
        scale = max(abs(limit), np.finfo(float).tiny)
        allowed = (limit - problem.base.get(resource, 0.0)) / scale
        constraints.append(LinearConstraint(sparse.csr_matrix(row(resource) / scale), -np.inf, allowed))
    for options in excluded:
        taken = np.zeros(size)
        taken[starts[:-1] + np.array(options)] = 1.0
        constraints.append(LinearConstraint(sparse.csr_matrix(taken), -np.inf, len(options) - 1))
    scale = max(float(np.abs(weights).max()), np.finfo(float).tiny)
    solution = milp(
        weights / scale,
        integrality=(np.arange(size) < starts[-1]).astype(int),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return None
    options = tuple(int(np.argmax(solution.x[starts[i] : starts[i + 1]])) for i in range(len(counts)))
    costs = {resource: problem.cost(resource, options) for resource in problem.costs}
    gap = float(solution.mip_gap or 0.0)
    return Choice(options, problem.damage(options), costs, gap, time.perf_counter() - began)


def _one_of_each(problem: Problem, counts: Sequence[int], starts: np.ndarray, size: int) -> LinearConstraint:
    """Return that exactly one option of each part, and of each group, is chosen."""
    parts = [tuple((part, option) for option in range(count)) for part, count in enumerate(counts)]
    groups = [*parts, *problem.groups]
    rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    columns = [starts[part] + option for group in groups for part, option in group]
    matrix = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(groups), size))
    return LinearConstraint(matrix, 1, 1)


def _products(
    problem: Problem, counts: Sequence[int], starts: np.ndarray, pair_starts: np.ndarray, size: int
) -> Iterator[LinearConstraint]:
    """Yield for each pair: the sums of the products over the options of one part are the options of the other."""
    for coupling, start in zip(problem.couplings, pair_starts, strict=False):
        first, second = counts[coupling.first], counts[coupling.second]
        products = start + np.arange(first * second).reshape(first, second)
        matrix = sparse.lil_matrix((first + second, size))
        for option in range(first):
            matrix[option, products[option]] = 1.0
            matrix[option, starts[coupling.first] + option] = -1.0
        for option in range(second):
            matrix[first + option, products[:, option]] = 1.0
            matrix[first + option, starts[coupling.second] + option] = -1.0
        yield LinearConstraint(matrix.tocsr(), 0, 0)
