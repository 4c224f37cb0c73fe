"""Run every scheduler's assignment on real workers: tasks that sleep, or a real network through `pbd-run`.

Each run is a process of its own; under MPI, as many as it has workers.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments.replays import named_tasks
from experiments.sleep_tasks import Case, cases
from pbd.errors import EnvironmentMismatchError, PbdError
from pbd.records import Assignment, BlockKey, BlockResult, BlockTask, TaskGroup, WorkerReport
from pbd.report.rows import worker_rows
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import SCHEDULERS
from pbd.scheduling.simulate import Span, lower_bound_s, replay

MARGIN = 0.05
"""Two makespans whose predictions differ by less than this part count as equal, in whichever order they come out."""

BOUND = ("--bind-to", "core")
"""For mpirun."""

Timeline = tuple[tuple[Span, ...], ...]


@dataclass(frozen=True)
class Execution:
    """One assignment, executed, beside what its replay predicts."""

    case: str
    executor: str
    scheduler: str
    predicted: Timeline
    """The replay on the times that the tasks really take."""
    measured: Timeline
    workers: tuple[WorkerReport, ...]
    """As the run's report has them."""
    bound_s: float
    """What no assignment can beat on these times."""
    planned_s: float
    """The makespan that the scheduler expected."""

    @property
    def predicted_s(self) -> float:
        return makespan_s(self.predicted)

    @property
    def measured_s(self) -> float:
        return makespan_s(self.measured)

    @property
    def idle_share(self) -> float:
        """Of all workers' time until the last is done."""
        idle_s = sum(worker.idle_s for worker in self.workers)
        return idle_s / (idle_s + sum(worker.busy_s for worker in self.workers))

    def figures(self) -> dict[str, Any]:
        """Return a line of the table."""
        names = ("case", "executor", "scheduler", "planned_s", "predicted_s", "measured_s", "bound_s", "idle_share")
        per_worker = {
            "busy_s": " ".join(f"{worker.busy_s:.3f}" for worker in self.workers),
            "idle_s": " ".join(f"{worker.idle_s:.3f}" for worker in self.workers),
        }
        return {name: getattr(self, name) for name in names} | {"workers": len(self.workers)} | per_worker


@dataclass(frozen=True)
class Request:
    """Whether the schedulers came out in the order that was predicted."""

    case: str
    executor: str
    by: str
    """Which figure of an execution is taken for the prediction."""
    pairs: int
    """Pairs of schedulers whose predicted makespans differ by more than the margin."""
    kept: int
    broken: tuple[str, ...]
    """The pairs that came out the other way round."""


def makespan_s(timeline: Timeline) -> float:
    """Return when the last worker was done."""
    return max((span.ended_s for spans in timeline for span in spans), default=0.0)


def execute(executor: str, workers: int, mean_s: float) -> list[Execution]:
    """Run every case under every scheduler of this executor, and return what came of it.

    Raises:
        PbdError: the executor's process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        settings = ["--executor", executor, "--workers", str(workers), "--mean-s", str(mean_s), "--out", str(out)]
        # At another level, Dask's workers would load TensorFlow to silence it, and these tasks have no need of it.
        run_module(executor, workers, ["experiments.sleep_tasks", *settings], {"TF_CPP_MIN_LOG_LEVEL": "0"})
        rows = json.loads(out.read_text(encoding="utf-8"))
    made = {case.name: case for case in cases(mean_s, workers)}
    return [_slept(made[row["case"]], executor, workers, row) for row in rows]


def _slept(case: Case, executor: str, workers: int, row: dict[str, Any]) -> Execution:
    results = [BlockResult(**one) for one in row["results"]]
    assignment = SCHEDULERS[row["scheduler"]](case.planned.tasks, case.planned.costs, workers)
    return Execution(
        case=case.name,
        executor=executor,
        scheduler=row["scheduler"],
        predicted=replay(assignment, case.true.costs).timeline,
        measured=measured_timeline(results, case.true.tasks, workers),
        workers=worker_rows(results, workers),
        bound_s=lower_bound_s(case.true.tasks, case.true.costs, workers),
        planned_s=assignment.predicted_makespan_s,
    )


def train(executor: str, scheduler: str, workers: int, settings: Sequence[str], run_dir: Path) -> Execution:
    """Run pbd on a real network under one scheduler, or take its report where it has been run.

    Args:
        executor: `dask` or `mpi`.
        scheduler: a key of `SCHEDULERS`.
        workers: how many.
        settings: further flags of `pbd-run`.
        run_dir: the run's directory.

    Raises:
        PbdError: the run failed; the message is its last line.
    """
    flags = ["--executor", executor, "--workers", str(workers), "--scheduler", scheduler, "--run-dir", str(run_dir)]
    flags += ["--resume"] if (run_dir / "run.json").is_file() else []
    if not (run_dir / "report.json").is_file():
        run_module(executor, workers, ["pbd.run", *flags, *settings])
    return from_report(json.loads((run_dir / "report.json").read_text(encoding="utf-8")), workers)


def from_report(report: dict[str, Any], workers: int) -> Execution:
    """Return a run's execution; the prediction is the replay of its groups on the times that it measured itself.

    What a worker did is taken for its queue; under `pull` and `work_stealing`, where workers decided as they came
    free, all groups are a pool in the order in which they began.
    """
    trained = [row for row in report["blocks"] if row["worker"] is not None]
    keys = ("worker", "started_s", "seconds")
    results = [BlockResult(row["layer"], row["status"], row["block"], **{k: row[k] for k in keys}) for row in trained]
    tasks = named_tasks(result.layer for result in results)
    measured = measured_timeline(results, tasks, workers)
    taken_s: dict[BlockKey, float] = {}
    for spans in measured:
        for span in spans:
            first, *others = (task.key for task in span.group.tasks)
            taken_s |= {first: span.ended_s - span.started_s} | dict.fromkeys(others, 0.0)
    costs = TaskCosts(dict.fromkeys(taken_s, 0.0), taken_s, grouped=False, source="measured in the run")
    queues = tuple(tuple(span.group for span in spans) for spans in measured)
    assignment = Assignment(report["scheduler"], queues, (0.0,) * workers)
    if report["scheduler"] in ("pull", "work_stealing"):
        began = sorted((span for spans in measured for span in spans), key=lambda span: span.started_s)
        pool = tuple(span.group for span in began)
        assignment = Assignment(report["scheduler"], ((),) * workers, (0.0,) * workers, pool=pool)
    parts = [costs.load_s(group.tasks) for group in assignment.groups]
    return Execution(
        case=Path(str(report["config"]["teacher"])).stem,
        executor=report["executor"],
        scheduler=report["scheduler"],
        predicted=replay(assignment, costs).timeline,
        measured=measured,
        workers=tuple(WorkerReport(**row) for row in report["workers"]),
        bound_s=max([sum(parts) / min(workers, len(parts)), *parts]),
        planned_s=report["timing"]["predicted_makespan_s"],
    )


def measured_timeline(results: Iterable[BlockResult], tasks: Sequence[BlockTask], workers: int) -> Timeline:
    """Return what each worker did when; results that share worker, start and duration are a group."""
    by_name = {task.layer.name: task for task in tasks}
    groups: dict[tuple[int, float, float], list[BlockTask]] = {}
    for result in results:
        groups.setdefault((result.worker, result.started_s, result.seconds), []).append(by_name[result.layer])
    spans = [
        (worker, Span(TaskGroup(tuple(group)), began_s, began_s + seconds))
        for (worker, began_s, seconds), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    return tuple(tuple(span for worker, span in spans if worker == number) for number in range(workers))


def order(executions: Sequence[Execution], margin: float = MARGIN, by: str = "predicted_s") -> Request:
    """Say whether executions of one case on one executor took longer where they were predicted to.

    Args:
        executions: one for each scheduler.
        margin: predictions that differ by no more than this part say nothing.
        by: `predicted_s`, the replay; or `planned_s`, what the scheduler expected before anything ran. Of a trained
            network, whose replay is on the times of the very run, only the latter is a forecast.
    """
    broken, pairs = [], 0
    for slow in executions:
        for fast in executions:
            if getattr(slow, by) > (1 + margin) * getattr(fast, by):
                pairs += 1
                if slow.measured_s <= fast.measured_s:
                    broken.append(f"{slow.scheduler} was not slower than {fast.scheduler}")
    return Request(executions[0].case, executions[0].executor, by, pairs, pairs - len(broken), tuple(broken))


def module_command(executor: str, workers: int, module: Sequence[str], bound: bool = False) -> list[str]:
    """Return the command that runs a module with its arguments, under `mpi` in a process for each worker.

    Args:
        executor: `mpi`, or any other.
        workers: how many MPI ranks.
        module: its name and its arguments.
        bound: whether each rank has a core of its own, and no other.
    """
    command = [sys.executable, "-m", *module]
    if executor == "mpi":
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [str(mpirun if mpirun.is_file() else "mpirun"), "-n", str(workers), *command]
        command[1:1] = BOUND if bound else []
    return command


def run_module(
    executor: str,
    workers: int,
    module: Sequence[str],
    environment: Mapping[str, str] = MappingProxyType({}),
    bound: bool = False,
) -> str:
    """Run a module with its arguments in a process of its own, under `mpi` one for each worker; return what it printed.

    See `module_command`.

    Raises:
        PbdError: it failed; the message is its last line.
    """
    command = module_command(executor, workers, module, bound)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    except FileNotFoundError as error:
        raise EnvironmentMismatchError(
            "the mpi executor needs mpirun. Received: no such command. Install it with pip install 'pbd[mpi]'."
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PbdError(f"{' '.join(module[:1])} on {executor} failed: {last}")
    return done.stdout
