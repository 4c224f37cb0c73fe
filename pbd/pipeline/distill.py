"""Parallel blockwise distillation, from a trained teacher to a fine-tuned student, readable from top to bottom.

It began with arXiv:2012.03096, whose recipe is `--recipe paper`; by default, designs are chosen under a budget.
"""

import contextlib
import functools
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pbd import progress, report
from pbd.config import RunConfig
from pbd.energy import accounting
from pbd.executors.base import Executor
from pbd.pipeline import early_checks, session, students
from pbd.pipeline.run_context import Clock, RunContext
from pbd.pipeline.versions import versions
from pbd.records import BlockKey, BlockReport, BlockResult, BlockTask, RunReport, Timing
from pbd.report import rows
from pbd.run_dir import damaged_images, deployed_files, error_files, manifest
from pbd.run_dir.journal import Journal
from pbd.scheduling import cost_table
from pbd.system import devices

if TYPE_CHECKING:
    import keras

    from pbd.blockwise.context import TrainingContext
    from pbd.data import Data
    from pbd.deploy.deployment import Deployed
    from pbd.learning.class_counts import ClassCounts
    from pbd.learning.metrics import Metrics
    from pbd.pipeline.block_phase import TrainedBlocks
    from pbd.pipeline.prepare import Inputs
    from pbd.pipeline.workers import WorkerPool
    from pbd.student.builder import Student


def run(
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    dedicated_process: bool = False,
) -> RunReport:
    """Run the method, on every worker there is, and return the report.

    Args:
        config: the settings of the run.
        model: the teacher, if it is not a file or a built-in network that the settings name.
        data: the images, if they are not what the settings name.
        dedicated_process: see `session.run`.

    Raises:
        PbdError: the settings, the teacher or the data do not fit; the message is one line and names the remedy.
    """

    def work(executor: Executor, display: progress.ProgressDisplay) -> RunReport:
        return run_on(executor, display, config, model, data)

    check = functools.partial(early_checks.check, config, model is not None)
    return session.run(config.execution, work, check, dedicated_process=dedicated_process)


def run_on(
    executor: Executor,
    display: progress.ProgressDisplay,
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    is_step: bool = False,
    sweep: Collection[str] = (),
) -> RunReport:
    """Run the method on the workers of a session that is open; see `run`.

    Args:
        executor: the workers.
        display: the display of the progress.
        config: see `run`, as for `model` and `data`.
        model: the teacher.
        data: the images.
        is_step: the run is a step of a recipe, which reads the test images and measures latency itself, at its end.
        sweep: budgets of all students of these blocks, which have to be possible, if there are several.
    """
    from pbd.pipeline import choosing, plan, prepare  # loads the backend

    clock = Clock()
    given_costs = cost_table.read_requested(config.execution.costs)
    requested: list[Sequence[str]] = [[text] for text in sweep] or [config.student.budget]

    def check_tasks(teacher: "keras.Model", tasks: Sequence[BlockTask]) -> None:
        choosing.check_counted(config, display, requested, teacher, tasks)
        if given_costs is not None and not config.execution.resume:
            plan.check_costs(given_costs, config, tasks)

    prepared = prepare.prepare(config, model, data, display, prepare.RunKind(check_tasks=check_tasks))
    with accounting.account(executor.readings) as account, prepared as inputs:
        clock.lap("teacher")
        manifest.record_budgets(inputs.journal, sweep)
        with error_files.recorded(inputs.journal, "run"):
            return _compress(RunContext(config, given_costs, inputs, executor, clock, account, display, is_step))


def _compress(run: RunContext) -> RunReport:
    from pbd.deploy import parity
    from pbd.pipeline import block_phase, remote_tasks
    from pbd.pipeline.student_phase import StudentPhase
    from pbd.pipeline.workers import WorkerPool
    from pbd.student import model_files

    inputs, journal = run.inputs, run.inputs.journal
    todo, done = _tasks(run)
    earlier = report.located(report.read(journal), journal) if _is_complete(run) else None
    if earlier is not None and len(done) == len(todo):
        run.display.phase("this run is already complete: the report, with its times and energy, is the earlier one")
        return earlier
    complete = manifest.names(journal.path)
    manifest.withdraw(journal)
    images, _ = next(iter(inputs.dataset.batches("validation", limit=parity.NUM_IMAGES)))
    model_files.check_teacher(journal.file("teacher.keras"), inputs.teacher, images)

    context = _context(run.config, inputs)
    pool = WorkerPool(run.executor, context, run.display.update)
    student_phase = StudentPhase(run, pool)
    with _recorded_again(journal, complete if earlier is not None else (), todo, done):
        trained = block_phase.train(run, context, list(todo.values()), done)
    if earlier is not None and manifest.is_intact(journal):
        run.display.phase("what failed has failed again, and all else is complete: the report is the earlier one")
        return earlier
    results = done | {result.key: result for result in trained.results}
    (teacher_metrics,) = pool.evaluate([journal.file("teacher.keras")], "validation")
    chosen, student = student_phase.build(results, teacher_metrics.score, images)
    run.clock.lap("fine_tune")

    blocks = rows.block_rows(inputs.tasks, results, chosen.accepted, chosen.lowest, student.restored)
    deployed = _deploy(run, student.model)
    finished = _report(run, pool, trained, teacher_metrics, student, deployed, blocks)
    finished = replace(finished, choice=chosen.report)
    report.write(finished, journal)
    manifest.write(journal, deployed.files)
    journal.remove_folder(remote_tasks.CHECKPOINTS)
    return finished


@contextlib.contextmanager
def _recorded_again(
    journal: Journal, complete: Collection[str], todo: Collection[BlockKey], done: Collection[BlockKey]
) -> Iterator[None]:
    """Record at the end of the block, however it ends, that a run is complete as before, if no block was trained.

    Args:
        journal: the journal of the run, the record of which has been withdrawn.
        complete: the names of its files; empty if it was not complete.
        todo: all blocks of the run.
        done: the blocks that it had.
    """
    try:
        yield
    finally:
        if complete and journal.committed_blocks().keys() & set(todo) == set(done):
            with contextlib.suppress(OSError):
                manifest.record(journal, complete)


def _tasks(run: RunContext) -> tuple[dict[BlockKey, BlockTask], dict[BlockKey, BlockResult]]:
    """Return the blocks to train, and the results of those that an earlier session trained."""
    tasks, journal = run.inputs.tasks, run.inputs.journal
    todo = {task.key: task for task in tasks if task.skip_reason is None}
    committed = journal.committed_blocks().items()
    done = {key: replace(result, from_journal=True) for key, result in committed if key in todo}
    layers = len({task.layer.name for task in tasks})
    run.display.phase(f"{layers} layers, {len(todo)} blocks to train, {len(done)} already trained")
    return todo, done


def _is_complete(run: RunContext) -> bool:
    """Return whether the run directory holds a student of these settings, and all its files are intact."""
    journal = run.inputs.journal
    return manifest.is_intact(journal) and students.has_settings(report.read(journal), run.config)


def _deploy(run: RunContext, student: "keras.Model") -> "Deployed":
    """Measure teacher and student where they are deployed; keep the student's files."""
    from pbd.deploy import deployment

    if run.is_step:
        return deployment.Deployed()
    from pbd.networks import precision

    inputs = run.inputs
    run.display.phase(f"measuring teacher and student in {inputs.target.runtime.name}")
    networks = {deployment.TEACHER: inputs.teacher, deployment.STUDENT: precision.in_float32(student)}

    keep = functools.partial(deployed_files.keep, inputs.journal)
    return deployment.measure(networks, inputs.dataset, inputs.target, deployment.BATCH_SIZES, keep)


def _report(
    run: RunContext,
    pool: "WorkerPool",
    trained: "TrainedBlocks",
    teacher_metrics: "Metrics",
    student_result: "Student",
    deployed: "Deployed",
    blocks: Sequence[BlockReport],
) -> RunReport:
    """Evaluate teacher and student on the test split, unless the run is a step, and return the report."""
    from pbd.analysis import class_changes
    from pbd.pipeline import model_facts

    config, inputs, journal = run.config, run.inputs, run.inputs.journal
    paths = journal.file("teacher.keras"), journal.file("student.keras")
    tested, counts = _evaluate_on_test(run, pool, paths)
    return RunReport(
        config=config.flat() | inputs.data_settings,
        versions=versions(),
        device=devices.describe(),
        teacher=model_facts.of(inputs.teacher, teacher_metrics, tested[0], paths[0]),
        assembled=model_facts.of(student_result.model, student_result.assembled),
        student=model_facts.of(student_result.model, student_result.metrics, tested[1], paths[1]),
        blocks=tuple(blocks),
        workers=tuple(trained.workers),
        deployments=deployed.deployments,
        classes=class_changes.changes(counts) if counts else None,
        timing=_timing(run.clock, trained),
        energy=run.account.summary(config.execution.resume),
        executor=run.executor.name,
        scheduler=trained.assignment.scheduler,
        groups=tuple(group.layer_names for group in trained.assignment.groups),
        reference="labels" if inputs.dataset.labelled else "teacher",
        fine_tune_history=student_result.history,
        kept_epoch=inputs.with_resolved_keep(config).student.fine_tune_keep,
        events=(
            *(() if run.is_step else inputs.events),
            *damaged_images.events(journal),
            *rows.describe_retries(trained.results),
            *student_result.events,
            *deployed.events,
        ),
        run_dir=str(journal.path),
    )


def _evaluate_on_test(
    run: RunContext, pool: "WorkerPool", paths: tuple[Path, Path]
) -> tuple[Sequence["Metrics | None"], "ClassCounts | None"]:
    """Return the metrics of teacher and student on the test images, and counts for each class; nothing in a step."""
    if run.is_step:
        return (None, None), None
    run.display.phase("evaluating teacher and student on the test split")
    return pool.evaluate_classes(paths, "test")


def _context(config: RunConfig, inputs: "Inputs") -> "TrainingContext":
    from pbd import blocks
    from pbd.blockwise.context import TrainingContext

    return TrainingContext(
        teacher_path=str(inputs.journal.file("teacher.keras")),
        data=inputs.data_config,
        image_shape=inputs.dataset.image_shape,
        training=config.training,
        designs={task.design: blocks.get(task.design) for task in inputs.tasks},
        block_init=config.blocks.block_init,
        seed=config.seed,
        journal=inputs.journal,
        session=uuid.uuid4().hex,
    )


def _timing(clock: Clock, trained: "TrainedBlocks") -> Timing:
    return Timing(
        teacher_s=clock.laps["teacher"],
        calibrate_s=clock.laps["calibrate"],
        distill_s=clock.laps["distill"],
        predicted_makespan_s=trained.assignment.predicted_makespan_s,
        predicted_from=trained.predicted_from,
        fine_tune_s=clock.laps["fine_tune"],
        total_s=clock.total_s(),
    )
