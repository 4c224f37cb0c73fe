"""One block phase of one scheme, in a process of its own (under MPI, one for each worker): `speed` runs it.

Its argument is a `Setup` as JSON, and it prints how many seconds the phase took. Before the clock starts, every worker
has loaded the teacher and the data and computed a batch: what is measured is training, scoring and writing blocks.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import processes, time_breakdown
from experiments.time_breakdown import Watch
from pbd import command_line
from pbd.command_line import Parser
from pbd.config import BlockConfig, DataConfig, ExecutionConfig, TrainingConfig
from pbd.config.values import Section, at_least, one_of
from pbd.errors import MissingInputError, PbdError
from pbd.executors.base import Executor
from pbd.records import Assignment, BlockResult, BlockTask, ProgressCallback, TaskGroup
from pbd.report.rows import worker_rows
from pbd.run_dir.journal import Journal
from pbd.scheduling.cost_model import TaskCosts
from pbd.scheduling.schedulers import SCHEDULERS
from pbd.system import backend, devices

if TYPE_CHECKING:
    from pbd.blockwise.context import TrainingContext

SCHEMES = ("paper", "task", "data", "copies", "automatic")
"""The paper's, and ours: each worker trains layers of its own, or all train all layers on a part of every batch.

In `copies` each worker trains everything, for itself: what that takes longer than one worker is the machine's doing.
`automatic` is `task` with the numbers of threads left to TensorFlow (the paper's Figure 5): every worker has as many as
there are cores, and its data pipeline is tuned while it runs.
"""
NAME = "experiments.block_phase"
SESSION = "speed"


@dataclass(frozen=True)
class Setup(Section):
    """What is trained, and how."""

    scheme: str
    """One of `SCHEMES`."""
    workers: int
    threads: int
    """CPU threads, and cores, of each worker."""
    run_dir: str
    """A run directory that exists; blocks are written there."""
    teacher: str
    """A flat `.keras` file."""
    dataset: str
    train_limit: int | None
    batch_size: int
    image_size: int | None
    """Pixels a side; `None`: those of the images."""
    augment: str
    epochs: int
    learning_rate: float
    block: str
    block_init: str
    seed: int

    def check(self) -> None:
        one_of("scheme", self.scheme, SCHEMES)
        at_least("workers", self.workers, 1)
        at_least("threads", self.threads, 1)
        BlockConfig(block_init=self.block_init)
        _ = self.data, self.training

    @property
    def data(self) -> DataConfig:
        return DataConfig(
            dataset=self.dataset,
            train_limit=self.train_limit,
            batch_size=self.batch_size,
            preprocess="none",
            augment=self.augment,
            image_size=self.image_size,
        )

    @property
    def training(self) -> TrainingConfig:
        """No block stops early: the schemes train for the same epochs."""
        return TrainingConfig(epochs=self.epochs, learning_rate=self.learning_rate, patience=0)


def take_cores(local_rank: int, threads: int) -> None:
    """Keep this worker to cores of its own, as many as it has threads, where the host has that many and can do so."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[local_rank * threads : (local_rank + 1) * threads]
    if len(own) == threads:
        os.sched_setaffinity(0, own)


def claim(setup: Setup, executor: Executor) -> None:
    """Take this worker's share of the cores, and of threads."""
    share = executor.share
    if setup.scheme == "automatic":
        from pbd.data.feeds import tf_data

        tf_data.PARALLEL_CALLS = -1  # tf.data.AUTOTUNE
        take_cores(0, setup.threads * share.local_workers)
        dataclasses.replace(share, threads=devices.available_cores()).claim()
    else:
        take_cores(share.local_rank, setup.threads)
        dataclasses.replace(share, threads=setup.threads).claim()


def load(setup: Setup) -> "tuple[TrainingContext, list[BlockTask]]":
    """Load what this worker trains with and compute a batch; return the context and the layers to replace."""
    from pbd import blocks
    from pbd.blockwise.context import TrainingContext, load_dataset, load_teacher
    from pbd.blockwise.tasks import enumerate_tasks
    from pbd.networks import files

    design = blocks.get(setup.block)
    files.load_own(Path(setup.teacher))  # says in one line if it is no model
    teacher = load_teacher(setup.teacher, SESSION)
    context = TrainingContext(
        teacher_path=setup.teacher,
        data=setup.data,
        image_shape=tuple(teacher.inputs[0].shape[1:]),
        training=setup.training,
        designs={setup.block: design},
        block_init=setup.block_init,
        seed=setup.seed,
        journal=Journal(Path(setup.run_dir)),
        session=SESSION,
    )
    dataset = load_dataset(context.data, context.seed, context.image_shape, SESSION, context.journal)
    teacher.predict_on_batch(next(iter(dataset.training_batches(0, 1)))[0])
    tasks = enumerate_tasks(teacher, design)
    return context, [task for task in tasks if task.skip_reason is None]


def dealt_out(tasks: Sequence[BlockTask], workers: int) -> Assignment:
    """Return the tasks one by one, dealt out in turn: the paper's round robin."""
    keys = [task.key for task in tasks]
    equal = TaskCosts(dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 1.0), grouped=False, source="equal")
    return SCHEDULERS["round_robin"](tasks, equal, workers)


def plan(
    scheme: str, context: "TrainingContext", tasks: Sequence[BlockTask], executor: Executor, emit: ProgressCallback
) -> Callable[[], Iterable[BlockResult]]:
    """Return what trains all tasks in this scheme; ours is planned and carried out as `pbd-run` does it."""
    if scheme == "paper":
        from experiments import paper_scheme

        train_group = functools.partial(paper_scheme.train_group, context)
        return lambda: executor.run(train_group, dealt_out(tasks, executor.num_workers), ignore)
    from pbd.pipeline import plan

    if scheme == "copies":
        everything = (TaskGroup(tuple(tasks)),)
        copies = Assignment("copies", (everything,) * executor.num_workers, (0.0,) * executor.num_workers)
        return lambda: plan.carry_out(copies, context, executor, emit)
    parallel = "data" if scheme == "data" else "task"
    planned = plan.make_plan(ExecutionConfig(parallel=parallel), None, context, tasks, tasks, executor)
    if planned.assignment.shared != (scheme == "data"):
        raise PbdError(f"{tasks[0].design} blocks cannot be trained by sharing batches. Give --block decoupled_r2.")
    return lambda: plan.carry_out(planned.assignment, context, executor, emit)


def ignore(_: object) -> None:
    """Take progress and do nothing."""


def wake(group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
    """Train nothing: with it, the clock starts when every worker has loaded what it needs."""
    return [BlockResult(name, "trained", "none") for name in group.layer_names]


@dataclass(frozen=True)
class Measured:
    """What a block phase took."""

    seconds: float
    """Until the last worker was done and every block was written."""
    spent: dict[str, float]
    """By `spending.PARTS`, of the first worker; empty for the paper's scheme."""


def measure(setup: Setup, executor: Executor) -> Measured:
    """Run the block phase and return what it took.

    Raises:
        PbdError: a block could not be trained.
    """
    claim(setup, executor)
    backend.load()
    context, tasks = load(setup)
    if not executor.coordinates:
        executor.serve()
    watch, results = Watch(), []
    train = plan(setup.scheme, context, tasks, executor, watch)
    list(executor.run(wake, dealt_out(tasks, executor.num_workers), ignore))
    watch.start()
    for result in train():
        if result.status == "failed":
            raise PbdError(f"{result.layer} could not be trained: {result.error}")
        context.journal.commit_block(result)  # again, with its worker and times, as pbd-run does
        results.append(result)
    ended = time.monotonic()
    return Measured(ended - watch.began, _spent(setup, context, executor.num_workers, results, watch, ended))


def _spent(
    setup: Setup,
    context: "TrainingContext",
    workers: int,
    results: Sequence[BlockResult],
    watch: Watch,
    ended: float,
) -> dict[str, float]:
    """Return where the first worker's seconds went."""
    from pbd import data
    from pbd.blockwise.context import load_dataset

    if not watch.events:
        return {}
    own = [result for result in results if result.worker == 0]
    dataset = load_dataset(context.data, context.seed, context.image_shape, SESSION, context.journal)
    part = data.WorkerShare(0, workers) if setup.scheme == "data" else data.WHOLE
    alone_s = time_breakdown.step_parts(context, [result.layer for result in own], dataset.shared(part))
    groups = len({result.started_s for result in own})
    steps = groups * setup.epochs * dataset.steps_per_epoch
    return time_breakdown.split(watch.spent(ended), steps, alone_s, worker_rows(results, workers)[0].idle_s)


def parse(argv: Sequence[str]) -> Setup:
    """Return the setup.

    Raises:
        UsageError: the argument is no `Setup` as JSON, or a value is wrong; the message is one line.
        MissingInputError: there is no such teacher or run directory.
    """
    parser = Parser(NAME, __doc__ or "")
    parser.add_argument("setup", metavar="JSON", help="a Setup as JSON")
    setup = processes.from_json(Setup, parser.parse_args(argv).setup)
    if not Path(setup.teacher).is_file():
        raise MissingInputError(f"the teacher must be a model file. Received: {setup.teacher!r}, no such file.")
    if not Path(setup.run_dir).is_dir():
        raise MissingInputError(f"the run directory must exist. Received: {setup.run_dir!r}. Create it.")
    return setup


def run(setup: Setup) -> None:
    """Measure the setup and print what the phase took.

    Raises:
        PbdError: the phase cannot be run, or a block could not be trained.
    """

    def work(executor: Executor) -> None:
        print(processes.as_json(measure(setup, executor)), flush=True)

    # All as measured here: not in a child process.
    processes.run_workers(ExecutionConfig(executor="mpi" if setup.workers > 1 else "serial", isolate=False), work)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
