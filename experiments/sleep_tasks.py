"""Tasks that sleep, run through a real executor under every scheduler; a process of its own for `executions`.

mpirun -n 4 python -m experiments.sleep_tasks --executor mpi --workers 4 --mean-s 2 --out results.json
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import processes
from experiments.replays import Source, logged_runs, named_tasks
from pbd import command_line
from pbd.command_line import Parser, check_folder, positive
from pbd.config import ExecutionConfig
from pbd.executors.base import Executor
from pbd.records import Assignment, BlockResult, ProgressCallback, TaskGroup
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import SCHEDULERS

NAME = "experiments.sleep_tasks"
EXECUTORS = ("dask", "mpi")


def seconds(text: str) -> float:
    """Return the text as finite seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds above 0. Received: {text!r}")
    return number


@dataclass(frozen=True)
class Case:
    """Tasks that sleep."""

    name: str
    true: Source
    """What they sleep for."""
    planned: Source
    """What the scheduler is told."""


def cases(mean_s: float, workers: int) -> list[Case]:
    """Return the cases, scaled so that each worker has this many seconds of work on average."""
    six_ones = [seconds for _ in range(workers) for seconds in (6.0, 1.0, 1.0, 1.0)]
    logged = logged_runs()["vgg16_dask_1gpu"]
    scaled = {
        "[6,1,1,1] repeated": six_ones,
        "VGG16 as logged on Dask": [logged.costs.task_s(task) for task in logged.tasks],
    }
    made = []
    for name, seconds in scaled.items():
        factor = mean_s * workers / sum(seconds)
        source = sleeping(name, [factor * one for one in seconds])
        made.append(Case(name, source, source))
    flat = sleeping("equal times", [mean_s * workers / len(six_ones)] * len(six_ones))
    return [*made, Case("[6,1,1,1], told equal", made[0].true, flat)]


def sleeping(name: str, seconds: Sequence[float]) -> Source:
    """Return tasks that take these seconds."""
    tasks = named_tasks(f"task{at}" for at in range(len(seconds)))
    times = {task.key: one for task, one in zip(tasks, seconds, strict=True)}
    return Source(name, tasks, TaskCosts(dict.fromkeys(times, 0.0), times, grouped=False, source=name))


@dataclass(frozen=True)
class Sleep:
    """Trains nothing: it sleeps for as long as the group is to take."""

    seconds: dict[str, float]

    def __call__(self, group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
        time.sleep(sum(self.seconds[name] for name in group.layer_names))
        return [BlockResult(name, "trained", "none") for name in group.layer_names]


def run_sleeping(executor: Executor, assignment: Assignment, true: Source) -> list[BlockResult]:
    """Let the executor's workers sleep through an assignment."""
    sleep = Sleep({task.layer.name: true.costs.task_s(task) for task in true.tasks})
    return list(executor.run(sleep, assignment, lambda progress: None))


def wake(executor: Executor, workers: int) -> None:
    """Give every worker something short, so that what it loads before its first task is loaded."""
    source = sleeping("waking", [0.1] * workers)
    run_sleeping(executor, SCHEDULERS["round_robin"](source.tasks, source.costs, workers), source)


def schedulers_of(executor: str) -> list[str]:
    """Return the schedulers that this executor has."""
    return [name for name in SCHEDULERS if executor == "dask" or name != "work_stealing"]


def _run_cases(executor: Executor, name: str, workers: int, mean_s: float) -> list[dict[str, Any]]:
    wake(executor, workers)
    rows = []
    for case in cases(mean_s, workers):
        for scheduler in schedulers_of(name):
            assignment = SCHEDULERS[scheduler](case.planned.tasks, case.planned.costs, workers)
            results = run_sleeping(executor, assignment, case.true)
            keys = ("layer", "status", "design", "worker", "started_s", "seconds")
            kept = [{key: getattr(result, key) for key in keys} for result in results]
            rows.append({"case": case.name, "scheduler": scheduler, "results": kept})
    return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: the folder of the results does not exist.
    """
    parser = Parser(NAME, __doc__ or "")
    parser.add_argument("--executor", choices=EXECUTORS, required=True)
    parser.add_argument("--workers", type=positive, required=True)
    parser.add_argument("--mean-s", type=seconds, required=True, help="seconds of work per worker")
    parser.add_argument("--out", type=Path, required=True, help="where the results are written, as JSON")
    settings = parser.parse_args(argv)
    check_folder("--out", settings.out)
    return settings


def run(settings: argparse.Namespace) -> None:
    """Run every sleeping case on one executor and write the results.

    Raises:
        PbdError: the executor cannot be opened, or a process was lost.
    """

    def work(executor: Executor) -> None:
        if not executor.coordinates:
            executor.serve()
        rows = _run_cases(executor, settings.executor, settings.workers, settings.mean_s)
        settings.out.write_text(json.dumps(rows), encoding="utf-8")

    config = ExecutionConfig(executor=settings.executor, workers=settings.workers, isolate=False)
    processes.run_workers(config, work)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
