"""The second half of a run: choose among the blocks, assemble a student, fine-tune it, and write it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pbd.blockwise import scoring
from pbd.deploy import targets
from pbd.networks import precision
from pbd.pipeline import choosing
from pbd.pipeline.budget_problem import BudgetProblem
from pbd.pipeline.choosing import Chosen
from pbd.pipeline.kept_choices import KeptChoices
from pbd.pipeline.proposals import Proposer
from pbd.pipeline.run_context import RunContext
from pbd.pipeline.workers import WorkerPool
from pbd.records import BlockKey, BlockResult
from pbd.run_dir import deployed_files
from pbd.student import model_files, refitted_damages
from pbd.student.builder import Student, StudentBuilder


class StudentPhase:
    """Builds the student of a run from its blocks.

    Args:
        run: see `RunContext`.
        pool: the workers of the run.
    """

    def __init__(self, run: RunContext, pool: WorkerPool) -> None:
        self._run, self._pool = run, pool
        inputs = run.inputs
        config = inputs.with_resolved_keep(run.config)
        self._builder = StudentBuilder(inputs.teacher, inputs.dataset, inputs.tasks, config, run.display, workers=pool)

    def build(
        self, results: Mapping[BlockKey, BlockResult], teacher_score: float, images: Any
    ) -> tuple[Chosen, Student]:
        """Return the choice among the blocks, and the student, which is fine-tuned and written.

        Args:
            results: the results of all blocks of the run.
            teacher_score: the teacher's on the validation split.
            images: preprocessed; the student's files are compared on them.

        Raises:
            InfeasibleBudgetError: no choice keeps within the budgets.
        """
        run = self._run
        settings = run.config.student
        damages = self._refitted(results) if settings.chooses_together and settings.refits else results
        target = targets.of_budget(run.config.execution.target)
        kept = KeptChoices.of(run.inputs.journal, settings, target.name, damages.values())
        score, events = self._teacher_score_on_scored_images(teacher_score)
        choices = choosing.choices(self._proposer(damages), kept, settings, teacher_score, score)
        chosen, built = choosing.build(choices, self._builder, settings.max_drop, teacher_score)
        chosen = replace(chosen, events=(*events, *chosen.events))
        return chosen, self._written(chosen, built, images)

    def _proposer(self, results: Mapping[BlockKey, BlockResult]) -> Proposer:
        inputs, run = self._run.inputs, self._run
        problem = BudgetProblem(inputs.teacher, inputs.tasks, results, run.config, run.display)
        return Proposer(problem, self._builder.assemble)

    def _teacher_score_on_scored_images(self, teacher_score: float) -> tuple[float, tuple[str, ...]]:
        """Return the teacher's score on the images on which the blocks were scored, and events."""
        number = len(self._run.inputs.dataset.validation)
        if number <= scoring.MOST_IMAGES:
            return teacher_score, ()
        path = self._run.inputs.journal.file("teacher.keras")
        (metrics,) = self._pool.evaluate([path], "validation", scoring.MOST_IMAGES)
        return metrics.score, (f"blocks were scored on {scoring.MOST_IMAGES:,} of {number:,} validation images",)

    def _refitted(self, results: Mapping[BlockKey, BlockResult]) -> Mapping[BlockKey, BlockResult]:
        """Return the results with the divergences that are left when the layers behind a block are refitted.

        They are kept in the run directory, for the other budgets of a sweep.
        """
        inputs = self._run.inputs
        tasks = refitted_damages.to_measure(inputs.tasks, results)
        measured = refitted_damages.read(inputs.journal)
        missing = [task for task in tasks if task.key not in measured]
        if missing:
            self._run.display.phase(f"measuring {len(missing)} residual blocks, the convolutions behind each refitted")
            divergences = self._pool.refitted_damages(missing)
            measured |= dict(zip((task.key for task in missing), divergences, strict=True))
            refitted_damages.write(inputs.journal, measured)
        return refitted_damages.corrected(inputs.tasks, results, measured) if tasks else results

    def _written(self, chosen: Chosen, built: Student, images: Any) -> Student:
        """Write the student in the precision of its teacher; return it with the events of the choice and of its files.

        Some of the chosen blocks may have been restored since.
        """
        inputs = self._run.inputs
        layers = {layer.name for layer in inputs.teacher.layers}
        model = precision.restored(built.model, inputs.half, layers, chosen.accepted.keys() - built.restored.keys())
        deployed_files.remove(inputs.journal)
        events = model_files.write(inputs.journal, model, images)
        return replace(built, model=model, events=(*chosen.events, *built.events, *events))
