"""The true optimum of small problems: the least makespan over all assignments, proven by a solver."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TICKS_PER_S = 10
"""The authors of arXiv:2012.03096 logged tenths of a second: in these ticks every time is a whole number."""
SOLVABLE_CELLS = 64
"""With at most this many tasks times workers, the solver proves an optimum in seconds."""


@dataclass(frozen=True)
class Optimum:
    """The least makespan over all assignments, or what is known of it, in seconds."""

    makespan_s: float
    """Of the best assignment found."""
    bound_s: float
    """No assignment is shorter than this; equal to `makespan_s` where the optimum is proven."""

    @property
    def proven(self) -> bool:
        return self.bound_s >= self.makespan_s


def optimum(times_s: Sequence[float], num_workers: int, time_limit_s: float = 10.0) -> Optimum:
    """Find the least makespan by mixed-integer programming (HiGHS), with a proof if the time suffices.

    Variables are x[task, worker] in {0, 1} and the makespan, in ticks. Workers are alike, so the i-th longest
    task only goes to the first i workers; some worker gets ceil(n / workers) tasks, which bounds the makespan.

    Raises:
        RuntimeError: no assignment was found within the time limit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    ticks = np.sort(np.rint(np.asarray(times_s) * TICKS_PER_S))[::-1]
    count = len(ticks)
    cells = count * num_workers
    each_once = np.hstack([np.kron(np.eye(count), np.ones(num_workers)), np.zeros((count, 1))])
    within_makespan = np.hstack([np.kron(ticks, np.eye(num_workers)), -np.ones((num_workers, 1))])
    crowded = ticks[count - math.ceil(count / num_workers) :].sum()
    least = max(ticks[0], math.ceil(ticks.sum() / num_workers), crowded)
    upper = np.append(np.tri(count, num_workers).ravel(), np.inf)
    found = milp(
        c=np.append(np.zeros(cells), 1.0),
        integrality=np.ones(cells + 1),
        bounds=Bounds(np.append(np.zeros(cells), least), upper),
        constraints=[LinearConstraint(each_once, 1, 1), LinearConstraint(within_makespan, -np.inf, 0)],
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"the solver must find an assignment. Received: {found.message} Raise the time limit.")
    # Read the makespan off the assignment itself, not off the solver's objective and its tolerance.
    loads = ticks @ np.rint(found.x[:cells]).reshape(count, num_workers)
    longest = float(loads.max())
    bound = max(least, math.ceil(found.mip_dual_bound - 1e-4))
    return Optimum(longest / TICKS_PER_S, float(min(bound, longest)) / TICKS_PER_S)
