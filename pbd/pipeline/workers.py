"""The workers of a run as one pool that evaluates, adapts and fine-tunes whole networks."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from pbd.blockwise.context import TrainingContext
from pbd.config import DistillationConfig, StudentConfig
from pbd.costs import memory
from pbd.deploy.int8.fake_quantization import FakeQuantization
from pbd.executors.base import Executor
from pbd.learning import ghost_batch_norm
from pbd.learning.class_counts import ClassCounts
from pbd.learning.metrics import Metrics
from pbd.networks import files
from pbd.pipeline.remote_tasks import (
    CHECKPOINTS,
    AdaptTask,
    EvaluateTask,
    FineTuneTask,
    Measure,
    MeasureTask,
    RefittedDamagesTask,
    TrainGroupTask,
)
from pbd.records import BlockResult, BlockTask, ProgressCallback, TaskGroup, no_progress
from pbd.scheduling import cutting
from pbd.student.adaptation import Adapted
from pbd.student.checkpoints import FineTuneState


class WorkerPool:
    """Distributes work on one network over all workers of an executor; each processes its part of the data.

    Networks are passed to workers as files of the run directory, and their weights are returned.

    Args:
        executor: Runs the tasks.
        context: The teacher, the data and the settings of the run.
        emit: Called with the progress of refitting and fine-tuning.
    """

    def __init__(self, executor: Executor, context: TrainingContext, emit: ProgressCallback) -> None:
        self._executor, self._context, self._emit = executor, context, emit

    def evaluate(self, models: Sequence[Path], split: str, limit: int | None = None) -> list[Metrics]:
        """Return the metrics of the networks in these files on a split, or on some of its images."""
        return self._evaluate(EvaluateTask(self._context, tuple(models), split, limit=limit))[0]

    def evaluate_classes(self, models: Sequence[Path], split: str) -> tuple[list[Metrics], ClassCounts | None]:
        """Return the same, and what the teacher and the last network answer class by class; `None` without labels."""
        return self._evaluate(EvaluateTask(self._context, tuple(models), split, by_class=True))

    def _evaluate(self, task: EvaluateTask) -> tuple[list[Metrics], ClassCounts | None]:
        return self._executor.run_collective(task, no_progress, max_workers=self._context.data.batch_size)

    def adapt(self, model: keras.Model, ends: Mapping[str, str]) -> Adapted:
        """Adapt a student to its own feature maps, in place (see `adaptation.adapt`)."""
        with self._temporary_file(model) as path:
            task = AdaptTask(self._context, path, ends)
            most = self._context.data.batch_size
            weights, adapted = self._executor.run_collective(task, self._emit, max_workers=most)
        model.set_weights(weights)
        return adapted

    def measure(self, model: keras.Model, measure: Measure) -> Any:
        """Return what a picklable function of a network, the teacher and the data returns in the first worker."""
        with self._temporary_file(model) as path:
            task = MeasureTask(self._context, path, measure)
            return self._executor.run_collective(task, no_progress, max_workers=self._context.data.batch_size)

    def groups(self, tasks: Sequence[BlockTask], memory_limit: float | None) -> list[TaskGroup]:
        """Return the fewest groups of consecutive tasks that are predicted to fit into the memory of a worker.

        Args:
            tasks: the tasks of the teacher's layers, in graph order.
            memory_limit: the limit of a worker in gigabytes; `None` for a share of the free memory, which refuses
                nothing.

        Raises:
            UsageError: a task does not fit into the limit alone.
        """
        if memory_limit is None and len(tasks) == 1:  # nothing to split or to refuse
            return [TaskGroup(tuple(tasks))]
        footprint = self._executor.call(functools.partial(memory.footprint, self._context, tuple(tasks)))
        budget, members = footprint.budget(memory_limit), min(self._executor.collective_size, self._most_trainers)
        groups = [TaskGroup(run) for run in cutting.runs(tasks, lambda run: budget.fits(run, members))]
        budget.check(groups, members, self._context.data.batch_size)
        return groups

    def train_blocks(self, group: TaskGroup) -> list[BlockResult]:
        """Return the trained blocks, one for each task; where batches cannot be shared, one worker trains all."""
        return self._executor.run_collective(TrainGroupTask(self._context, group), self._emit, self._most_trainers)

    @property
    def _most_trainers(self) -> int:
        """The largest number of workers that can train the same blocks."""
        return self._context.data.batch_size if self._context.can_share_batches else 1

    def refitted_damages(self, tasks: Sequence[BlockTask]) -> list[float]:
        """Return the divergence of the teacher with the block of each task (see `refitted_damages.divergences`)."""
        task = RefittedDamagesTask(self._context, tuple(tasks))
        return self._executor.run_collective(task, self._emit, max_workers=self._context.data.batch_size)

    def fine_tune(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics,
        first_epoch: int,
        distillation: DistillationConfig | None = None,
        start: str = "",
        quantization: FakeQuantization | None = None,
    ) -> FineTuneState:
        """Fine-tune the trainable layers of a student, and leave it with the best weights.

        Args:
            model: The student.
            settings: Loss, number of epochs, and the learning rate from which it decays.
            initial: Its validation metrics before fine-tuning.
            first_epoch: The epoch of the data with which to start.
            distillation: What the student learns from besides logits and labels; by default nothing.
            start: Names the weights it begins with. Training goes on from a checkpoint if this is the same, too.
            quantization: If given, a copy of the student with this fake quantisation is trained. The student is left as
                it is, and the best weights of the state are those of the copy.
        """
        batch_size, distillation = self._context.data.batch_size, distillation or DistillationConfig()
        # A worker needs at least one split unit of every batch.
        max_workers = batch_size // ghost_batch_norm.split_unit(model, batch_size, distillation.compares_images)
        checkpoint_token = functools.partial(self._context.journal.last_written, CHECKPOINTS, ".npz")
        with self._temporary_file(model) as path:
            task = FineTuneTask(self._context, path, settings, initial, first_epoch, distillation, start, quantization)
            state = self._executor.run_collective(task, self._emit, max_workers, checkpoint_token)
        if quantization is None:
            model.set_weights(state.best_weights)
        return state

    @contextmanager
    def _temporary_file(self, model: keras.Model) -> Iterator[Path]:
        """Yield the path of a file of the network in the run directory, which is deleted at the end of the block."""
        path = files.save_model(self._context.journal, "assembled.keras", model)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
