"""`python -m tests.helpers.played_run`: a run of `pbd` whose blocks are slept for, in place of `python -m pbd.run`.

Command line, signals, exit codes, executor, run directory and report are those of pbd. The teacher, the data and the
training are left out, and so no TensorFlow is loaded: what launch scripts and clusters do can be tested in seconds.
`python_wrapper` writes a program which launch scripts can use as Python, by `PBD_PYTHON`, and which starts this module.
"""

import os
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pbd import report
from pbd.config import RunConfig
from pbd.energy import accounting
from pbd.executors.base import Executor
from pbd.pipeline import distill
from pbd.progress import ProgressDisplay
from pbd.records import BlockKey, BlockResult, BlockTask, Progress, ProgressCallback, RunReport, TaskGroup
from pbd.report import rows
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal
from pbd.scheduling import schedulers
from tests.helpers import collective_tasks
from tests.helpers.report_factory import make_report
from tests.helpers.sleep_tasks import sleeping

LAYERS = 10
"""Layers of the played teacher."""
EPOCH_S = 0.3
"""How long a block sleeps for each of its epochs."""
STEP_S = 0.1
"""How long it sleeps before it reports progress."""
HOLD = "hold"
"""While the run directory has a file of this name, no block comes to its end."""
ROOT = Path(__file__).resolve().parents[2]
WRAPPER = """#!/bin/sh
# Plays Python: pbd.run is a played run, and no process loads TensorFlow only to silence it.
export PYTHONPATH="{root}:$PYTHONPATH" TF_CPP_MIN_LOG_LEVEL=0
if [ "$1 $2" = "-m pbd.run" ]; then
    shift 2
    set -- -m tests.helpers.played_run "$@"
fi
exec "{python}" "$@"
"""


def python_wrapper(folder: Path) -> Path:
    """Write a program that runs Python, but a played run in place of `pbd.run`; return its path."""
    path = folder / "python"
    path.write_text(WRAPPER.format(root=ROOT, python=sys.executable))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class PlayedTraining:
    """Trains a group by sleeping, then writes its blocks into the run directory, as a worker of pbd does."""

    journal: Journal
    block_s: float

    def __call__(self, group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
        unique = uuid.uuid4().hex
        for layer in group.layer_names:
            (begun(self.journal.path) / f"{layer}.{unique}").touch()
        steps = max(1, round(len(group.tasks) * self.block_s / STEP_S))
        for step in range(steps):
            time.sleep(STEP_S)
            emit(Progress(0, group.layer_names[0], step + 1, steps))
        waiting = self.journal.path / "held"
        while (self.journal.path / HOLD).exists():
            waiting.mkdir(exist_ok=True)
            (waiting / unique).touch()
            time.sleep(STEP_S)
        results = [_block(task) for task in group.tasks]
        for result in results:
            self.journal.commit_block(result)
        return results


def begun(run_dir: Path) -> Path:
    """Return the folder of a run that has a file for every time that a layer was begun."""
    return run_dir / "begun"


def held(run_dir: Path) -> int:
    """Return how many trainings have waited for the file `HOLD` to go, each at the end of a group."""
    return len(list((run_dir / "held").glob("*")))


def weights_of(layer: str) -> dict[str, np.ndarray]:
    """Return the weights that a played block has at its end."""
    return {"conv/kernel": np.frombuffer(layer.encode().ljust(64, b"-"), np.uint8).astype(np.float32)}


def _block(task: BlockTask) -> BlockResult:
    return BlockResult(task.layer.name, "trained", task.design, weights_of(task.layer.name), nmse=0.1, val_accuracy=0.9)


def _run(executor: Executor, display: ProgressDisplay, config: RunConfig, model: Any, data: Any) -> RunReport:
    """Do as `pbd.pipeline.distill` does, but for the teacher, the data and the student."""
    tasks, costs = sleeping([1.0] * LAYERS)
    run_dir, identity = Path(config.execution.run_dir).absolute(), config.block_settings()
    lock.check(run_dir)
    Journal.check(run_dir, config.execution.resume)
    if config.execution.resume:
        journal = Journal.resume(run_dir, identity)
    else:
        journal = Journal.create(run_dir, identity, [task.key for task in tasks])
    with lock.held(run_dir), accounting.account(executor.readings) as account:
        begun(run_dir).mkdir(exist_ok=True)
        done = journal.committed_blocks()
        missing = [task for task in tasks if task.key not in done]
        scheduler = schedulers.choose(config.execution.scheduler, config.execution.group, executor.elastic)
        assignment = scheduler(missing, costs, executor.num_workers)
        training, results = PlayedTraining(journal, EPOCH_S * config.training.block_epochs), []
        display.phase(f"playing {len(missing)} blocks on {executor.num_workers} workers; {len(done)} were done before")
        began = time.monotonic()
        for result in executor.run(training, assignment, display.update):
            journal.commit_block(result)
            results.append(result)
        size, (_, total) = executor.run_collective(collective_tasks.sums, display.update, executor.num_workers)
        assert total == size * (size + 1) / 2, f"an all-reduce of {size} workers gave {total}"
        account.shares(results, time.monotonic() - began)
        return _report(config, executor, journal, tasks, done | {result.key: result for result in results})


def _report(
    config: RunConfig, executor: Executor, journal: Journal, tasks: list[BlockTask], blocks: dict[BlockKey, BlockResult]
) -> RunReport:
    finished = make_report(
        config=config.flat(),
        blocks=rows.block_rows(tasks, blocks, {key.layer: block for key, block in blocks.items()}, 0.5, {}),
        workers=rows.worker_rows(list(blocks.values()), executor.num_workers),
        executor=executor.name,
        groups=(),
        run_dir=str(journal.path),
    )
    report.write(finished, journal)
    return finished


def play() -> None:
    """Replace, in this process, the training of a run; no process that it starts loads TensorFlow."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    distill.run_on = _run


def main() -> int:
    """Run the command line of pbd with a played training; return the exit code."""
    from pbd import run

    play()
    code = run.main()
    assert "tensorflow" not in sys.modules, "a played run loads no TensorFlow"
    return code


if __name__ == "__main__":
    from tests.helpers import played_run  # other processes unpickle its classes by this name

    sys.exit(played_run.main())
