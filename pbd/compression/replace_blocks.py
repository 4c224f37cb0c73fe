"""The step that is pbd's own method: blocks learn the feature maps of the network, and the best replace layers."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import keras

from pbd import blocks
from pbd.compression import labels
from pbd.compression.keras_losses import NamedLosses
from pbd.compression.step import StepResult
from pbd.config import RunConfig, StudentConfig
from pbd.config.settings import BlockConfig, TrainingConfig
from pbd.errors import CorruptStateError, UsageError
from pbd.networks import files, graph, precision
from pbd.pipeline import distill, input_checks
from pbd.report import json_safe, words
from pbd.run_dir import steps
from pbd.run_dir.journal import Journal

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.data import Dataset
    from pbd.records import RunReport

RUN = "run"
"""The folder of the step that holds the run."""


@dataclass(frozen=True)
class ReplaceBlocks(NamedLosses, StudentConfig, TrainingConfig, BlockConfig):
    """Parallel blockwise distillation; see `pbd.distill` for the settings. The network before the step is the teacher.

    Without any setting, it looks for the fastest student of the library that loses at most one point (`max_drop`). If a
    step before has set weights to zero, layers are refitted only with `refit=True`, which makes such weights non-zero.
    Blocks and student are trained in the precision of the recipe unless the step has another one than float32.

    Example:
        >>> ReplaceBlocks(budget="latency:0.6", fine_tune_epochs=8)
    """

    uses_target: ClassVar[bool] = True

    def check(self) -> None:
        for section in (BlockConfig, TrainingConfig, StudentConfig):
            section.check(self)
        if self.sweep is not None:
            raise UsageError(f"a step makes one network. Received: sweep {self.sweep}. Give a budget.")
        for name in self.block:
            blocks.get(name)

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "fine_tune_loss", self.fine_tune_epochs, dataset)

    def check_config(self, config: RunConfig) -> None:
        labelled = config.replace(labels=True)  # `check_data` checks the labels
        input_checks.check_designs(self._within(labelled).resolved())

    def _within(self, recipe: RunConfig) -> RunConfig:
        """Return the settings of a recipe with those of the step."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.fine_tune_keep == "auto":
            settings["fine_tune_keep"] = recipe.student.fine_tune_keep
        if self.precision == TrainingConfig.precision:
            settings["precision"] = recipe.training.precision
        return recipe.replace(**settings)

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        run_dir = context.journal.file(RUN)
        settings = {"run_dir": str(run_dir), "allow_weak_teacher": True}  # the teacher of the recipe was checked
        settings["keep_zeros"] = self.keep_zeros or context.keeps_zeros
        config = self._within(context.config).replace(**settings).resolved()
        config = config.replace(resume=_holds_run_of(run_dir, config))
        report = distill.run_on(context.executor, context.display, config, model, is_step=True)
        student = graph.flatten(precision.in_float32(files.load_own(run_dir / "student.keras")))
        return StepResult(student, _details(report), (*report.events, *_events(report)))


def _holds_run_of(run_dir: Path, config: RunConfig) -> bool:
    """Return whether a folder holds a run with these settings of blocks and their training.

    The step has the same settings as then, but what follows from them may have changed. Another run, or one whose
    `run.json` is damaged, is deleted.
    """
    if not (run_dir / "run.json").exists():
        return False
    names, values = [field.name for kind in (BlockConfig, TrainingConfig) for field in fields(kind)], config.flat()
    with contextlib.suppress(CorruptStateError):
        identity = Journal(run_dir).identity()
        if all(identity.get(name) == json_safe(values[name]) for name in names):
            return True
    shutil.rmtree(run_dir)
    return False


def _events(report: "RunReport") -> Iterator[str]:
    """Yield how many layers are replaced, and a line for each block that failed."""
    yield words.replaced(report.blocks)
    for row in report.blocks:
        for candidate in row.candidates or (row,):
            if candidate.status == "failed":
                yield f"{row.layer} is not replaced by {candidate.block}: {candidate.reason}"


def _details(report: "RunReport") -> dict[str, object]:
    chosen = {row.layer: row.block for row in report.blocks if row.status == "accepted"}
    choice = {"predicted": report.choice.predicted, "measured": report.choice.measured} if report.choice else {}
    return {
        "replaced": words.replaced(report.blocks),
        "blocks": chosen,
        steps.FAILED_BLOCKS: [str(key) for key in report.failed_blocks],
        "history": report.fine_tune_history,
        **choice,
    }
