"""Replay the schedulers on tables of costs, beside the lower bound, the true optimum and the figures of the paper.

The seconds that the authors of arXiv:2012.03096 logged are times of whole tasks (teacher's prefix and block
together), one task at a time, so their replay is ungrouped; tables measured by pbd are replayed both ways.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.optimum import SOLVABLE_CELLS, Optimum, optimum
from pbd.records import BlockKey, BlockTask, Layer
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import SCHEDULERS
from pbd.scheduling.simulate import Replay, lower_bound_s, replay

DATA = Path(__file__).parent / "data"
LOGS = (DATA / "seed_layer_runtimes.json", DATA / "paper_speedups.json")
WORKERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
STOPS_BELOW = 0.01
"""A scheduler stops scaling where no larger number of workers brings this much more speedup."""
REPRODUCED = 0.04
"""How far a replayed speedup may lie from the printed one, as a part of it."""


@dataclass(frozen=True)
class Source:
    """A table of costs to replay."""

    name: str
    tasks: tuple[BlockTask, ...]
    costs: TaskCosts
    logged: bool = False
    """Whether the paper's authors logged it: whole tasks, in tenths of a second."""

    def replay(self, scheduler: str, workers: int) -> Replay:
        """Return what this scheduler makes of the table."""
        return replay(SCHEDULERS[scheduler](self.tasks, self.costs, workers), self.costs)

    @property
    def one_by_one_s(self) -> float:
        """What one worker needs that trains one task at a time: the paper's serial run."""
        return sum(self.costs.task_s(task) for task in self.tasks)


@dataclass(frozen=True)
class Row:
    """One scheduler on one table of costs and so many workers."""

    source: str
    grouped: bool
    scheduler: str
    workers: int
    makespan_s: float
    speedup: float
    """Over one worker that groups likewise."""
    speedup_one_by_one: float
    """Over one worker that trains one task at a time."""
    efficiency: float
    """Speedup per worker."""
    idle_share: float
    """Of all workers' time until the last is done."""
    bound_s: float
    ratio: float
    """Makespan over the lower bound."""
    optimum_s: float | None
    """The least makespan over all assignments; `None` where it was not looked for."""
    optimum_proven: bool


@dataclass(frozen=True)
class Limit:
    """Where a scheduler stops scaling on one table of costs, among the numbers of workers replayed."""

    source: str
    grouped: bool
    scheduler: str
    workers: int
    speedup: float
    efficiency: float
    speedup_one_by_one: float
    bound_speedup: float
    """What the lower bound allows with this many workers."""
    why: str


@dataclass(frozen=True)
class Printed:
    """A speedup that the paper printed, beside the replays of its logs."""

    model: str
    scheduler: str
    workers: int
    printed: float
    from_one_gpu_times: float
    """Predicted from the times logged on one GPU."""
    from_own_times: float | None
    """The same plan on the times logged with all workers; `None` without such a log."""
    why: str

    @property
    def reproduced(self) -> bool | None:
        """Whether the replay on the run's own times gives the printed figure; `None` without such times."""
        return None if self.from_own_times is None else abs(self.from_own_times / self.printed - 1) <= REPRODUCED


def keyed_tasks(keys: Iterable[BlockKey]) -> tuple[BlockTask, ...]:
    """Return the tasks with these keys; shapes and counts are dummies, since seconds stand in for them."""
    shape, one = (1, 1, 1), (1, 1)
    return tuple(
        BlockTask(Layer(index, name, (3, 3), one, one, "same", "linear", shape, shape, 0, 0, 0), design, 0, 0)
        for index, (name, design) in enumerate(keys)
    )


def named_tasks(names: Iterable[str]) -> tuple[BlockTask, ...]:
    """Return a task for each of these layers."""
    return keyed_tasks(BlockKey(name, "none") for name in names)


@functools.cache
def logged_runs() -> dict[str, Source]:
    """Return every run that the paper's authors logged, by its name."""
    runs = {name: run for path in LOGS for name, run in json.loads(path.read_text())["runs"].items()}
    return {name: _logged(name, run["layers"], run["run_time_s"], run["source"]) for name, run in runs.items()}


def _logged(name: str, layers: Sequence[str], times_s: Sequence[float], origin: str) -> Source:
    tasks = named_tasks(layers)
    times = {task.key: seconds for task, seconds in zip(tasks, times_s, strict=True)}
    costs = TaskCosts(dict.fromkeys(times, 0.0), times, grouped=False, source=f"logged: {origin}")
    return Source(name, tasks, costs, logged=True)


def is_cost_table(name: str) -> bool:
    """Say whether the run's times fit any number of GPUs: taken on one, or by Dask, where they hardly grew."""
    return "1gpu" in name or "dask" in name


def logged_sources() -> list[Source]:
    """Return the logged runs whose times fit any number of GPUs."""
    return [source for name, source in logged_runs().items() if is_cost_table(name)]


def both_ways(name: str, costs: TaskCosts) -> list[Source]:
    """Return a measured table twice: one task at a time, and with groups that share their prefix."""
    tasks = keyed_tasks(costs.prefix_s)
    return [
        Source(f"{name}, {'grouped' if grouped else 'one by one'}", tasks, dataclasses.replace(costs, grouped=grouped))
        for grouped in (False, True)
    ]


def replay_source(
    source: Source, worker_counts: Sequence[int] = WORKERS, time_limit_s: float = 10.0, solve: bool = True
) -> list[Row]:
    """Return a row per number of workers and scheduler.

    Args:
        source: the table of costs.
        worker_counts: the numbers of workers.
        time_limit_s: seconds that the solver may take for each optimum.
        solve: whether to look for optima at all; it does so for logged times, where the problem is small.
    """
    rows = []
    for workers in worker_counts:
        bound_s = lower_bound_s(source.tasks, source.costs, workers)
        small = workers > 1 and len(source.tasks) * workers <= SOLVABLE_CELLS
        times_s = [source.costs.task_s(task) for task in source.tasks]
        best = optimum(times_s, workers, time_limit_s) if solve and small and source.logged else None
        rows += [_row(source, scheduler, workers, bound_s, best) for scheduler in SCHEDULERS]
    return rows


def _row(source: Source, scheduler: str, workers: int, bound_s: float, best: Optimum | None) -> Row:
    times = source.replay(scheduler, workers)
    return Row(
        source=source.name,
        grouped=source.costs.grouped,
        scheduler=scheduler,
        workers=workers,
        makespan_s=times.makespan_s,
        speedup=times.speedup,
        speedup_one_by_one=source.one_by_one_s / times.makespan_s,
        efficiency=times.efficiency,
        idle_share=sum(times.idle_s) / (workers * times.makespan_s),
        bound_s=bound_s,
        ratio=times.makespan_s / bound_s,
        optimum_s=best.makespan_s if best else None,
        optimum_proven=best is not None and best.proven,
    )


def limits(source: Source, rows: Sequence[Row]) -> list[Limit]:
    """Return where each scheduler stops scaling: no larger number of workers brings `STOPS_BELOW` more speedup."""
    return [_limit(source, [row for row in rows if row.scheduler == scheduler]) for scheduler in SCHEDULERS]


def _limit(source: Source, rows: Sequence[Row]) -> Limit:
    best = max(row.speedup for row in rows)
    row = next(row for row in rows if row.speedup * (1 + STOPS_BELOW) > best)
    figures = (row.scheduler, row.workers, row.speedup, row.efficiency, row.speedup_one_by_one)
    bound_speedup = row.speedup * row.ratio
    return Limit(row.source, row.grouped, *figures, bound_speedup, _why_it_stops(source, row, row is rows[-1]))


def _why_it_stops(source: Source, row: Row, still_grows: bool) -> str:
    if still_grows:
        return "it does not, up to here"
    longest = max(source.tasks, key=source.costs.task_s)
    longest_s = source.costs.task_s(longest)
    if row.makespan_s <= (1 + STOPS_BELOW) * longest_s:
        return f"{longest.layer.name} alone takes {longest_s:.4g} s, {longest_s / source.one_by_one_s:.0%} of all"
    return f"longest worker {row.makespan_s / longest_s:.2f} times the longest task"


def printed_speedups() -> list[Printed]:
    """Return the speedups that the paper printed, each with the replay of its logs and what stands between them."""
    return [_printed(row) for row in json.loads(LOGS[1].read_text())["printed"]]


def _printed(row: dict) -> Printed:
    one = logged_runs()[row["one_gpu_log"]]
    plan = SCHEDULERS[row["scheduler"]](one.tasks, one.costs, row["workers"])
    predicted = replay(plan, one.costs).speedup
    own, why = None, []
    if row["log"]:
        many = logged_runs()[row["log"]]
        own = row["one_gpu_s"] / replay(plan, many.costs).makespan_s
        growth = many.one_by_one_s / one.one_by_one_s - 1
        why.append(f"the same tasks took {growth:.0%} longer in all on {row['workers']} GPUs than on one")
        if abs(row["log_s"] / row["time_s"] - 1) > STOPS_BELOW:
            why.append(
                f"the log is of another run ({row['log_s']:.0f} s) than the printed figure ({row['time_s']:.0f} s)"
            )
    else:
        why.append(f"no log of the {row['workers']}-GPU run is at hand, only its total")
    if abs(row["one_gpu_s"] / one.one_by_one_s - 1) > STOPS_BELOW:
        against = one.one_by_one_s / row["time_s"]
        why.append(
            f"printed against a one-GPU run of {row['one_gpu_s']:.0f} s that is not the logged one; "
            f"against that ({one.one_by_one_s:.0f} s) it would be {against:.2f}"
        )
    figures = (row["model"], row["scheduler"], row["workers"], row["speedup"])
    return Printed(*figures, predicted, own, "; ".join(why))
