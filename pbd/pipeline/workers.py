"""All workers of a run together: what they are told to do with whole networks, each on its part of the data."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras

from pbd.blockwise.context import TrainingContext
from pbd.config import StudentConfig
from pbd.executors.base import Executor
from pbd.learning import ghost_batch_norm
from pbd.learning.metrics import Metrics
from pbd.pipeline import prepare
from pbd.pipeline.remote_tasks import CHECKPOINTS, EvaluateTask, FineTuneTask, RecalibrateTask
from pbd.records import ProgressCallback
from pbd.student.fine_tuning import Tuning


class WorkerPool:
    """The workers of an executor, for one run.

    Args:
        executor: whose workers they are.
        context: what they work with.
        emit: told of their progress in fine-tuning.
    """

    def __init__(self, executor: Executor, context: TrainingContext, emit: ProgressCallback) -> None:
        self._executor, self._context, self._emit = executor, context, emit

    def evaluate(self, models: Sequence[Path], split: str) -> list[Metrics]:
        """Return the marks of the networks in these files on a split."""
        work = EvaluateTask(self._context, tuple(models), split)
        return self._executor.run_collective(work, _ignore, max_workers=self._context.data.batch_size)

    def recalibrate(self, model: keras.Model) -> Metrics:
        """Re-estimate a student's batch statistics, in place; return its marks on the validation split."""
        with self._in_a_file(model) as path:
            work = RecalibrateTask(self._context, path)
            weights, marks = self._executor.run_collective(work, _ignore, max_workers=self._context.data.batch_size)
        model.set_weights(weights)
        return marks

    def tune(self, model: keras.Model, settings: StudentConfig, before: Metrics, first_epoch: int) -> Tuning:
        """Fine-tune a student, in place; return what came of it.

        Args:
            model: what is trainable of it is tuned.
            settings: loss, epochs, first learning rate.
            before: its marks as it comes.
            first_epoch: which epoch of the data to begin with.
        """
        units = self._context.data.batch_size // ghost_batch_norm.split_unit(model, self._context.data.batch_size)
        kept = functools.partial(self._context.journal.last_written, CHECKPOINTS, ".npz")
        with self._in_a_file(model) as path:
            work = FineTuneTask(self._context, path, settings, before, first_epoch)
            weights, tuning = self._executor.run_collective(work, self._emit, units, kept)
        model.set_weights(weights)
        return tuning

    @contextmanager
    def _in_a_file(self, model: keras.Model) -> Iterator[Path]:
        """Give workers the network as a file of the run directory, for as long as they work on it."""
        path = prepare.save_model(self._context.journal, "assembled.keras", model)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _ignore(event: object) -> None:
    """Take progress and do nothing."""
