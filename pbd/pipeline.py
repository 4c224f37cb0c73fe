"""The method of arXiv:2012.03096, from a trained teacher to a fine-tuned student, readable from top to bottom."""

import functools
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbd import completion, decisions, devices, progress, report
from pbd.config import RunConfig, StudentConfig
from pbd.executors import open_executor
from pbd.executors.base import Executor
from pbd.records import Assignment, BlockResult, LayerTask, ModelFacts, RunReport, Timing
from pbd.scheduling import cost_table

if TYPE_CHECKING:
    import keras

    from pbd import student
    from pbd.evaluation import Marks
    from pbd.fine_tuning import Tuning
    from pbd.journal import Journal
    from pbd.preparation import Inputs
    from pbd.training import TrainingContext


def distill(config: RunConfig | None = None, /, *, model: "keras.Model | None" = None, **settings: Any) -> RunReport:
    """Compress a trained network by parallel blockwise distillation, and return the report of the run.

    Under `mpirun` every rank calls this and every rank gets the same report.

    Args:
        config: all settings; the defaults where absent.
        model: the teacher itself, in place of the file or name in the settings.
        **settings: single settings by name, over `config` (see `pbd.RunConfig.of`).

    Returns:
        What `report.json` in the run directory says.

    Raises:
        PbdError: the settings, the teacher or the data do not fit; the message is one line and says the remedy.

    Example:
        >>> report = pbd.distill(teacher="resnet20.keras", dataset="cifar10", epochs=3)
        >>> report.student.test_accuracy, report.student.path
    """
    config = (config or RunConfig()).replace(**settings)
    if model is not None:
        config = config.replace(teacher=model.name)
    executor = open_executor(config.execution)
    try:
        if not executor.coordinates:
            return executor.serve()
        executor.share.claim()
        devices.load_backend()
        with progress.open_progress() as display:
            finished = _distill(config, model, executor, display)
        executor.finish(finished)
    except BaseException as error:
        executor.stop(error)
        raise
    return finished


def _distill(
    config: RunConfig, model: "keras.Model | None", executor: Executor, display: progress.ProgressDisplay
) -> RunReport:
    from pbd import preparation  # loads the backend

    clock = _Clock()
    given = cost_table.read_given(config.execution.costs)
    with preparation.prepare(config, model, display) as inputs:
        return _compress(config, given, inputs, executor, clock, display)


def _compress(
    config: RunConfig,
    given: cost_table.CostTable | None,
    inputs: "Inputs",
    executor: Executor,
    clock: "_Clock",
    display: progress.ProgressDisplay,
) -> RunReport:
    from pbd import folding, latency, preparation, shared_work, student

    teacher, dataset, journal, tasks = inputs.teacher, inputs.dataset, inputs.journal, inputs.tasks
    clock.lap("teacher")

    todo = {task.layer_name: task for task in tasks if task.skip_reason is None}
    done = {name: result for name, result in journal.committed_blocks().items() if name in todo}
    missing = [task for name, task in todo.items() if name not in done]
    display.phase(f"{len(tasks)} convolutions, {len(todo)} to replace, {len(done)} done before")
    if not missing and completion.is_intact(journal):
        display.phase("this run was finished before")
        return report.read(journal)
    completion.withdraw(journal)

    context = _context(config, inputs)
    block_phase = _train_blocks(config, given, inputs, context, list(todo.values()), missing, executor, clock, display)
    results = done | {result.layer_name: result for result in block_phase.results}

    (teacher_marks,) = _mark(context, [journal.file("teacher.keras")], "validation", executor)
    lowest = config.student.lowest_accuracy(teacher_marks.measure)
    accepted = decisions.accept(results.values(), lowest)
    tune = _tuner(context, journal, executor, display)
    small = student.make(teacher, dataset, tasks, accepted, config, display, tune)
    path = preparation.save_model(journal, "student.keras", small.model)
    preparation.save_model(journal, "student_folded.keras", folding.fold(small.model))
    clock.lap("fine_tune")

    display.phase("reading the test split, once")
    tested = _mark(context, [journal.file("teacher.keras"), path], "test", executor)
    finished = RunReport(
        config=config.flat(),
        versions=preparation.versions(),
        device=devices.describe(),
        teacher=_facts(teacher, teacher_marks, tested[0], journal.file("teacher.keras")),
        assembled=_facts(small.model, small.assembled),
        student=_facts(small.model, small.marks, tested[1], path),
        blocks=decisions.block_rows(tasks, results, lowest, small.given_back),
        workers=decisions.worker_rows(block_phase.results, executor.num_workers),
        latency=latency.compare(teacher, small.model, config.data.batch_size),
        timing=clock.timing(block_phase),
        energy={"source": "none", "total_j": None},
        executor=executor.name,
        scheduler=block_phase.assignment.scheduler,
        groups=tuple(group.layer_names for group in block_phase.assignment.groups),
        judged_by="labels" if dataset.labelled else "teacher",
        fine_tune_history=small.history,
        story=(*decisions.losses_in_words(block_phase.results), *small.story),
        run_dir=str(journal.path),
    )
    report.write(finished, journal)
    completion.write(journal)
    journal.remove_folder(shared_work.BOOKMARKS)
    return finished


@dataclass(frozen=True)
class _BlockPhase:
    """What was trained by this process and its workers; what was done before is not among it."""

    results: list[BlockResult]
    assignment: Assignment
    predicted_from: str


def _train_blocks(
    config: RunConfig,
    given: cost_table.CostTable | None,
    inputs: "Inputs",
    context: "TrainingContext",
    todo: list[LayerTask],
    missing: list[LayerTask],
    executor: Executor,
    clock: "_Clock",
    display: progress.ProgressDisplay,
) -> _BlockPhase:
    """Plan, train, and write down what it took."""
    from pbd import planning

    journal = inputs.journal
    if not missing:
        clock.lap("calibrate")
        clock.lap("distill")
        return _BlockPhase([], Assignment("none", (), ()), "nothing that was left to train")
    display.phase("predicting what each layer takes")
    plan = planning.make(config.execution, given, context, todo, missing, executor)
    clock.lap("calibrate")

    scheduler, workers = plan.assignment.scheduler, executor.num_workers
    display.phase(f"training {len(missing)} blocks on {workers} workers ({scheduler}{plan.why and '; ' + plan.why})")
    results = []
    for result in planning.carry_out(plan.assignment, context, missing, executor, display.update):
        if result.status == "trained":  # its worker wrote it too; now it has the worker and the times with it
            journal.commit_block(result)
        results.append(result)
    journal.write_json("costs.json", plan.measured_costs(results, str(journal.path)).as_json())
    clock.lap("distill")
    return _BlockPhase(results, plan.assignment, plan.predicted_from)


def _context(config: RunConfig, inputs: "Inputs") -> "TrainingContext":
    from pbd import training

    return training.TrainingContext(
        teacher_path=str(inputs.journal.file("teacher.keras")),
        data=inputs.data_config,
        image_shape=inputs.dataset.image_shape,
        training=config.training,
        block=config.blocks.block,
        block_init=config.blocks.block_init,
        seed=config.seed,
        journal=inputs.journal,
        session=uuid.uuid4().hex,
    )


def _tuner(
    context: "TrainingContext", journal: "Journal", executor: Executor, display: progress.ProgressDisplay
) -> "student.Tune":
    """Return what fine-tunes a student, in place, on all workers together."""
    from pbd import blocks, ghost_batches, preparation, shared_work

    def tune(model: "keras.Model", settings: StudentConfig, before: "Marks", first_epoch: int) -> "Tuning":
        path = preparation.save_model(journal, "assembled.keras", model)
        work = shared_work.TuneShared(context, path, settings, before, first_epoch)
        most = context.data.batch_size // ghost_batches.unit(model, context.data.batch_size)
        kept = functools.partial(journal.last_written, shared_work.BOOKMARKS, ".npz")
        weights, tuning = executor.together(work, display.update, most, kept)
        path.unlink()
        blocks.set_weights(model, weights)
        return tuning

    return tune


def _mark(context: "TrainingContext", models: list[Path], split: str, executor: Executor) -> list["Marks"]:
    """Return the marks of the networks in these files, found by all workers together."""
    from pbd import shared_work

    work = shared_work.MarkShared(context, tuple(models), split)
    return executor.together(work, lambda event: None, most=context.data.batch_size)


def _facts(model: "keras.Model", val: "Marks", test: "Marks | None" = None, path: Path | None = None) -> ModelFacts:
    from pbd import evaluation

    return ModelFacts(
        params=evaluation.count_params(model),
        macs=evaluation.count_macs(model),
        val_accuracy=val.accuracy,
        test_accuracy=test.accuracy if test else None,
        path=str(path) if path else None,
        size_bytes=path.stat().st_size if path else None,
        val_agreement=val.agreement,
        test_agreement=test.agreement if test else None,
        val_kl=val.kl,
        test_kl=test.kl if test else None,
    )


@dataclass
class _Clock:
    """Wall-clock seconds of each phase, in the order in which they end."""

    began: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        self.laps[phase] = time.monotonic() - self.began - sum(self.laps.values())

    def timing(self, block_phase: _BlockPhase) -> Timing:
        return Timing(
            teacher_s=self.laps["teacher"],
            calibrate_s=self.laps["calibrate"],
            distill_s=self.laps["distill"],
            predicted_makespan_s=block_phase.assignment.predicted_makespan_s,
            predicted_from=block_phase.predicted_from,
            fine_tune_s=self.laps["fine_tune"],
            total_s=time.monotonic() - self.began,
        )
