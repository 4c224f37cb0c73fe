"""Make the members of an ensemble side by side: a worker does all steps of a member, as if it were the only worker."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from pbd.blockwise.context import TrainingContext, load
from pbd.collective import Collective
from pbd.compression.chain import Chain
from pbd.compression.context import Context
from pbd.compression.step import Step
from pbd.config import ExecutionConfig, RunConfig
from pbd.deploy.targets import Target
from pbd.executors.isolation.runner import WorkerRunner
from pbd.executors.serial import SerialExecutor
from pbd.networks import files
from pbd.progress import ProgressDisplay
from pbd.records import Progress, ProgressCallback
from pbd.run_dir import error_files

LEAST_BUSY = 0.5
"""Members are made side by side if more than this share of the workers is busy on average."""


def keep_busy(members: int, workers: int) -> bool:
    """Return whether members that take equally long, each on one worker, keep more than half of the workers busy.

    Example:
        >>> keep_busy(members=3, workers=2), keep_busy(members=2, workers=4), keep_busy(members=2, workers=1)
        (True, False, False)
    """
    rounds = math.ceil(members / workers)
    return workers > 1 and members / (rounds * workers) > LEAST_BUSY


@dataclass(frozen=True)
class MemberTask:
    """Do the steps of a member in a worker. Their networks are in the member's folder afterwards."""

    name: str
    """Names the member in the progress: `member 2 of 3`."""
    steps: Sequence[Step]
    before: Path
    """The file of the network before the first step, in the run directory."""
    context: TrainingContext
    """The first network of the recipe, the images, the member's seed and its folder."""
    config: RunConfig
    target: Target
    keeps_zeros: bool

    @classmethod
    def of(cls, name: str, chain: Chain, before: Path) -> "MemberTask":
        """Return the task for a chain of this process."""
        context = chain.context
        training = context.for_workers(context.teacher_path)
        return cls(name, chain.steps, before, training, context.config, context.target, context.keeps_zeros)

    def __call__(self, collective: Collective, emit: ProgressCallback) -> None:
        with error_files.recorded(self.context.journal, self.name):
            context = self._context(emit)
            before = context.teacher if self.before == context.teacher_path else files.load_own(self.before)
            for _ in Chain(context, self.steps).networks(before):
                pass

    def _context(self, emit: ProgressCallback) -> Context:
        """Return the context of the member in this worker; what is loaded here stays loaded for its tasks."""
        _, dataset = load(self.context)
        path = Path(self.context.teacher_path)
        return Context(
            teacher=files.load_own(path),  # on JAX, a task that fails leaves the teacher of tasks without its variables
            teacher_path=path,
            dataset=dataset,
            config=self.config,
            target=self.target,
            journal=self.context.journal,
            executor=SerialExecutor(ExecutionConfig(), WorkerRunner()),
            display=_MemberDisplay(self.name, emit),
            seed=self.context.seed,
            session=self.context.session,
            keeps_zeros=self.keeps_zeros,
        )


class _MemberDisplay(ProgressDisplay):
    """Reports phases and progress of a member as the progress of its worker."""

    def __init__(self, name: str, emit: ProgressCallback) -> None:
        self._name, self._label, self._emit = name, name, emit

    def update(self, event: Progress) -> None:
        self._emit(replace(event, label=f"{self._label}: {event.label}"))

    def phase(self, text: str) -> None:
        self._label = f"{self._name}, {text}"
        self._emit(Progress(0, self._label, 0, 0))


def make_side_by_side(chains: Sequence[Chain], before: keras.Model, context: Context) -> None:
    """Do the steps of all chains, each chain on one worker; afterwards their networks are in their folders.

    Args:
        chains: the steps of each member, with its context.
        before: the network before the first step of each.
        context: the context of the ensemble.

    Raises:
        PbdError: a step cannot be applied, or a worker was lost at every attempt.
    """
    for chain in chains:
        chain.context.journal.path.mkdir(exist_ok=True)  # holds the files of errors
    with context.file_of(before) as path:
        names = (f"member {number} of {len(chains)}" for number in range(1, len(chains) + 1))
        tasks = [MemberTask.of(name, chain, path) for name, chain in zip(names, chains, strict=True)]
        context.executor.run_each(tasks, context.display.update)
