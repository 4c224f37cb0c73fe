"""Run pbd as its users do, `mpirun -n N python -m pbd.run …` in fresh processes, and read what report.json says."""

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.measured_runs import BOUND, module_command, run_module
from pbd import RunConfig
from pbd.errors import CannotCreateError

if TYPE_CHECKING:
    from experiments.interleave import Job

Report = dict[str, Any]
"""The content of a report.json."""


@dataclass(frozen=True)
class Run:
    """One run of pbd; its settings are checked where it is made."""

    name: str
    """Its run directory is named after it."""
    workers: int
    flags: Mapping[str, Any]
    """Settings by name, those of `pbd.RunConfig`."""

    def __post_init__(self) -> None:
        RunConfig.of(**self.flags)

    def directory(self, folder: Path) -> Path:
        """Return its run directory."""
        return folder / re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")

    @property
    def bound(self) -> bool:
        """Whether each worker has a core of its own: else one of a single thread would read its images on another."""
        return self.flags.get("threads_per_worker") == 1

    def arguments(self, folder: Path) -> list[str]:
        """Return what `pbd.run` is given."""
        words = [word for name, value in self.flags.items() for word in _flag(name, value)]
        return [*words, "--run-dir", str(self.directory(folder))]

    def command(self, folder: Path) -> str:
        """Return what a user types."""
        bound = BOUND if self.bound else ()
        return shlex.join(
            ["mpirun", *bound, "-n", str(self.workers), "python", "-m", "pbd.run", *self.arguments(folder)]
        )

    def fits(self, report: Report) -> bool:
        """Say whether the report is of a run like this one."""
        config, own = report["config"], json.loads(json.dumps(RunConfig.of(**self.flags).flat()))
        return len(report["workers"]) == self.workers and all(config[name] == own[name] for name in self.flags)


def _flag(name: str, value: Any) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{words}"]
    return [f"--{words}", str(value)]


def carry_out(planned: Sequence[Run], folder: Path, print_only: bool = False) -> list[Report]:
    """Run one after the other and return their reports; those that are there are not run again.

    Args:
        planned: each with a name of its own.
        folder: where the run directories go.
        print_only: only say what would be run, and return nothing.

    Raises:
        CannotCreateError: a run directory is taken by a run that was stopped, or by another one.
        PbdError: a run failed.
    """
    console = Console(stderr=True)
    if print_only:
        for run in planned:
            print(run.command(folder))
        return []
    return [_report(run, folder, console) for run in planned]


def _report(run: Run, folder: Path, console: Console) -> Report:
    run_dir = run.directory(folder)
    path = run_dir / "report.json"
    if not path.is_file():
        if run_dir.exists():
            raise CannotCreateError(
                "what a run takes is known only if it was never stopped. "
                f"Received: {str(run_dir)!r}, without a report. Delete it, or give another --runs."
            )
        began = time.monotonic()
        run_module("mpi", run.workers, ["pbd.run", *run.arguments(folder)], bound=run.bound)
        console.print(f"{run.name}: {time.monotonic() - began:.0f} s", highlight=False)
    report = json.loads(path.read_text(encoding="utf-8"))
    if not run.fits(report):
        raise CannotCreateError(
            f"--runs may hold only runs of the same settings. Received: {str(run_dir)!r}, a run of others. "
            "Give another --runs."
        )
    return report


def carry_out_in_turns(repeats: Sequence[Sequence[Run]], folder: Path, turn_s: float) -> list[Report]:
    """Run those of each repeat in turns; return all reports with the times that the turns give.

    A turn is of so many seconds for the most workers, and the longer the fewer there are: each phase of a run then has
    the machine that the same phase of the others has, as far as their speedup is ideal.

    `distill_s` is from when the teacher is in the run directory to the last block, so that it holds the planning;
    `total_s` is from the command to the report. All other times in these reports count while a run was stopped.

    Raises:
        CannotCreateError: a run directory is taken.
        PbdError: a run failed.
    """
    named = [[replace(run, name=f"{run.name} in turns") for run in repeat] for repeat in repeats]
    taken = [path for repeat in named for run in repeat if (path := run.directory(folder)).exists()]
    if taken:
        raise CannotCreateError(f"--turns needs new run directories. Received: {str(taken[0])!r}. Give another --runs.")
    return [report for repeat in named for report in _in_turns(repeat, folder, turn_s)]


def _in_turns(planned: Sequence[Run], folder: Path, turn_s: float) -> list[Report]:
    from experiments import interleave  # needs psutil

    commands = {
        run.directory(folder).with_suffix(".txt"): module_command(
            "mpi", run.workers, ["pbd.run", *run.arguments(folder)], run.bound
        )
        for run in planned
    }
    most = max(run.workers for run in planned)
    jobs = interleave.run(commands, [turn_s * most / run.workers for run in planned])
    return [_timed_by(job, run.directory(folder)) for run, job in zip(planned, jobs, strict=True)]


def _timed_by(job: "Job", run_dir: Path) -> Report:
    """Return a run's report with the times that it had the machine."""
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    began, *blocks, ended = (
        job.seconds_until(path.stat().st_mtime)
        for path in (run_dir / "teacher.keras", *run_dir.glob("blocks/*.npz"), run_dir / "report.json")
    )
    report["timing"] |= {"distill_s": max(blocks) - began, "total_s": ended}
    return report


def trained(report: Report) -> list[dict[str, Any]]:
    """Return the rows of the blocks that were trained."""
    return [row for row in report["blocks"] if row["nmse"] is not None]


def conditions(report: Report) -> str:
    """Return in a line what our figures were measured on."""
    config = report["config"]
    images = f"{config['train_limit'] or 'all'} images of {Path(config['dataset']).stem}"
    return (
        f"Ours: {Path(config['teacher']).stem}, {images}, epochs: {config['epochs']} for each block, "
        f"{config['fine_tune_epochs']} of fine-tuning, batches of {config['batch_size']}; {report['device']}."
    )
