"""The choice of options within limits is the best there is."""

import itertools
import pickle
import time

import numpy as np
import pytest

from pbd.student.solver import Coupling, InfeasibleError, Problem, best, cheapest, solve

pytestmark = pytest.mark.fast
RESOURCES = ("latency", "params")


def random_problem(seed: int) -> tuple[Problem, dict[str, float]]:
    """Return a small problem and limits; ties are frequent.

    Costs of some pairs of parts depend on each other; of others, the last option of one excludes the first of the other
    and must be taken without it.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size=rng.integers(1, 6))
    pairs = [(i, i + 1) for i in range(len(counts) - 1) if rng.random() < 0.6]
    problem = Problem(
        damages=tuple(rng.integers(0, 10, count) / 10 for count in counts),
        costs={name: tuple(rng.random(count) for count in counts) for name in RESOURCES},
        couplings=tuple(Coupling(i, j, {n: rng.random((counts[i], counts[j])) for n in RESOURCES}) for i, j in pairs),
        groups=tuple(((i, int(counts[i]) - 1), (j, 0)) for i, j in pairs[1::2] if counts[i] > 1),
        base={"latency": 0.1},
    )
    limits = {"latency": 0.1 + len(counts) * rng.uniform(0.2, 0.9), "params": len(counts) * rng.uniform(0.2, 1.2)}
    return problem, dict(list(limits.items())[: rng.integers(1, 3)])


def all_choices(problem: Problem) -> list[tuple[int, ...]]:
    return [
        options
        for options in itertools.product(*(range(len(damages)) for damages in problem.damages))
        if all(sum(options[part] == option for part, option in group) == 1 for group in problem.groups)
    ]


@pytest.mark.parametrize("seeds", [range(0, 100), range(100, 200)], ids=str)
def test_the_choice_is_that_of_brute_force(seeds: range) -> None:
    infeasible = 0
    for seed in seeds:
        problem, limits = random_problem(seed)
        allowed = [o for o in all_choices(problem) if all(problem.cost(r, o) <= limits[r] for r in limits)]
        if not allowed:
            infeasible += 1
            with pytest.raises(InfeasibleError) as refused:
                solve(problem, limits)
            for name, amount in refused.value.least.items():
                assert amount == pytest.approx(min(problem.cost(name, options) for options in all_choices(problem)))
            continue
        choices = list(itertools.islice(best(problem, limits), 4))
        damages = sorted(problem.damage(options) for options in allowed)
        assert [choice.damage for choice in choices] == pytest.approx(damages[: len(choices)]), seed
        assert len(choices) == min(4, len(allowed))
        assert len({choice.options for choice in choices}) == len(choices)
        for choice in choices:
            assert all(choice.costs[name] <= limit for name, limit in limits.items())
            assert choice.gap < 1e-9
    assert 10 < infeasible < 90, "both kinds of problems are tried"


@pytest.mark.parametrize("huge", [50.0, 1e6])
def test_a_huge_damage_does_not_hide_the_order_of_small_ones(huge: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        damages = [np.array([0.0, *10 ** rng.uniform(-5, -2, 3)]) for _ in range(5)]
        costs = [np.array([1.0, *rng.uniform(0.2, 0.9, 3)]) for _ in range(5)]
        damages[1], costs[1] = np.append(damages[1], huge), np.append(costs[1], 0.05)
        problem, limits = Problem(tuple(damages), {"latency": tuple(costs)}), {"latency": 3.0}
        allowed = [problem.damage(o) for o in all_choices(problem) if problem.cost("latency", o) <= 3.0]
        found = [choice.damage for choice in itertools.islice(best(problem, limits), 6)]
        assert found == pytest.approx(sorted(allowed)[:6], rel=1e-6)


def test_a_limit_of_exactly_what_is_needed_is_kept() -> None:
    """Costs of any size: the solver's tolerances are absolute."""
    for scale in (1e-6, 1.0, 1e9):
        problem = Problem((np.array([0.0, 1.0]),) * 3, {"latency": (scale * np.array([3.0, 1.0]),) * 3})
        choice = solve(problem, {"latency": 5.0 * scale})
        assert choice.damage == 2.0
        assert choice.costs["latency"] == pytest.approx(5.0 * scale)
        with pytest.raises(InfeasibleError):
            solve(problem, {"latency": 2.999 * scale})
        assert cheapest(problem, "latency").costs["latency"] == pytest.approx(3.0 * scale)


def test_two_hundred_layers_with_twelve_candidates_are_solved_in_seconds() -> None:
    rng = np.random.default_rng(0)
    costs = tuple(np.sort(rng.random(12)) for _ in range(200))
    pairs = tuple(Coupling(i, i + 1, {"latency": np.sort(rng.random((12, 12)))}) for i in range(0, 199, 2))
    problem = Problem(tuple(np.sort(rng.random(12))[::-1] for _ in range(200)), {"latency": costs}, pairs)
    smallest, largest = cheapest(problem, "latency").costs["latency"], problem.cost("latency", [11] * 200)
    started_s = time.process_time()
    choice = solve(problem, {"latency": (smallest + largest) / 2})
    assert choice.gap < 1e-9
    assert time.process_time() - started_s < 20, "2 s on an idle core"


def test_the_same_problem_has_the_same_choice() -> None:
    problem, _ = random_problem(3)
    limits = {"latency": 1.1 * cheapest(problem, "latency").costs["latency"]}
    assert [solve(problem, limits).options for _ in range(3)] == [solve(problem, limits).options] * 3


def test_a_refusal_reaches_other_processes() -> None:
    refusal = pickle.loads(pickle.dumps(InfeasibleError({"macs": 3.0})))
    assert refusal.least == {"macs": 3.0}
    assert str(refusal) == "no choice keeps the limits. Least possible: {'macs': 3.0}."
