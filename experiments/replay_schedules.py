"""Replay the schedulers on the run times that the authors of arXiv:2012.03096 logged, beside the true optimum.

The logged seconds are times of whole tasks (teacher's prefix and block together), one task at a time, so the
replay is ungrouped. It says what a scheduler would reach if the times were the same on every number of GPUs;
the authors' own times grew when four GPUs shared one host.

    python -m experiments.replay_schedules --csv replay.csv
"""

import csv as csv_module
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp

from pbd.records import LayerTask
from pbd.scheduling.cost_model import LayerCosts
from pbd.scheduling.schedulers import SCHEDULERS
from pbd.scheduling.simulate import replay

LOG = Path(__file__).parent / "data" / "seed_layer_runtimes.json"
WORKERS = (2, 3, 4)
TICKS_PER_S = 10
"""The authors logged tenths of a second: in these ticks every time is a whole number."""


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


@dataclass(frozen=True)
class Row:
    """One scheduler on one logged run; `ratio` is its makespan over the best one known."""

    run: str
    workers: int
    scheduler: str
    makespan_s: float
    speedup: float
    ratio: float
    optimum_s: float
    optimum_bound_s: float


def logged_task(index: int, layer_name: str) -> LayerTask:
    """Return a task of that name; its shapes and counts are dummies, since logged seconds stand in for them."""
    shape = (1, 1, 1)
    one = (1, 1)
    return LayerTask(index, layer_name, (3, 3), one, one, "same", "linear", shape, shape, 0, 0, 0, 0, 0)


def logged_runs(path: Path = LOG) -> dict[str, tuple[list[LayerTask], LayerCosts]]:
    """Return the tasks and costs of every logged run, by its name."""
    runs = json.loads(path.read_text())["runs"]
    tables = {}
    for name, run in runs.items():
        times = dict(zip(run["layers"], run["run_time_s"], strict=True))
        costs = LayerCosts(dict.fromkeys(times, 0.0), times, grouped=False, source=f"logged: {run['source']}")
        tables[name] = ([logged_task(at, layer) for at, layer in enumerate(times)], costs)
    return tables


def is_cost_table(name: str) -> bool:
    """Say whether the run's times fit any number of GPUs: taken on one, or by Dask, where they hardly grew."""
    return "1gpu" in name or "dask" in name


def optimum(times_s: list[float], num_workers: int, time_limit_s: float = 10.0) -> Optimum:
    """Find the least makespan by mixed-integer programming (HiGHS), with a proof if the time suffices.

    Variables are x[task, worker] in {0, 1} and the makespan, in ticks. Workers are alike, so the i-th longest
    task only goes to the first i workers; some worker gets ceil(n / workers) tasks, which bounds the makespan.

    Raises:
        RuntimeError: no assignment was found within the time limit.
    """
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


def replay_run(name: str, tasks: list[LayerTask], costs: LayerCosts, workers: int, time_limit_s: float) -> list[Row]:
    """Return a row per scheduler for one run on this many workers."""
    best = optimum([costs.task_s(task) for task in tasks], workers, time_limit_s)
    rows = []
    for scheduler, assign in SCHEDULERS.items():
        times = replay(assign(tasks, costs, workers), costs)
        ratio = times.makespan_s / best.makespan_s
        figures = (times.makespan_s, times.speedup, ratio, best.makespan_s, best.bound_s)
        rows.append(Row(name, workers, scheduler, *figures))
    return rows


def as_table(rows: list[Row]) -> Table:
    """Return the rows as a table: one line for each run and number of workers."""
    table = Table(
        title="Makespan in seconds (times the optimum; speedup)",
        caption="The optimum is over all assignments; contiguous may only cut the layers' order into runs.",
    )
    for heading in ("run", "workers", *SCHEDULERS, "optimum"):
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for at in range(0, len(rows), len(SCHEDULERS)):
        line = rows[at : at + len(SCHEDULERS)]
        cells = [f"{row.makespan_s:.1f} ({row.ratio:.3f}; {row.speedup:.2f}x)" for row in line]
        best = Optimum(line[0].optimum_s, line[0].optimum_bound_s)
        optimum_cell = f"{best.makespan_s:.1f}" + ("" if best.proven else f" (not proven, bound {best.bound_s:.1f})")
        table.add_row(line[0].run, str(line[0].workers), *cells, optimum_cell)
    return table


def main(csv: Path | None = None, time_limit_s: float = 10.0) -> None:
    """Print every scheduler's makespan on the authors' logged run times, beside the optimum.

    Args:
        csv: Also write the figures to this file.
        time_limit_s: Seconds that the solver may take for each optimum.
    """
    rows = [
        row
        for name, (tasks, costs) in logged_runs().items()
        if is_cost_table(name)
        for workers in WORKERS
        for row in replay_run(name, tasks, costs, workers, time_limit_s)
    ]
    Console(width=None if Console().is_terminal else 140).print(as_table(rows))
    if csv is not None:
        with csv.open("w", newline="") as file:
            writer = csv_module.DictWriter(file, fieldnames=list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    tyro.cli(main)
