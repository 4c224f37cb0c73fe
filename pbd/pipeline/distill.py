"""The method of arXiv:2012.03096, from a trained teacher to a fine-tuned student, readable from top to bottom."""

import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pbd import progress, report
from pbd.config import RunConfig
from pbd.energy import accounting
from pbd.executors.base import Executor
from pbd.pipeline import early_checks, session, students
from pbd.pipeline.versions import versions
from pbd.records import (
    Assignment,
    BlockKey,
    BlockReport,
    BlockResult,
    BlockTask,
    RunReport,
    Timing,
    WorkerReport,
)
from pbd.report import rows
from pbd.run_dir import damaged_images, deployed_files, error_files, manifest
from pbd.scheduling import cost_table
from pbd.system import devices

if TYPE_CHECKING:
    import keras

    from pbd.blockwise.context import TrainingContext
    from pbd.data import Data
    from pbd.deploy.deployment import Deployed
    from pbd.learning.metrics import Metrics
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
        config: of the run.
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
) -> RunReport:
    """Run the method on the workers of a session that is open; see `run`.

    Args:
        executor: the workers.
        display: of the progress.
        config: see `run`, as for `model` and `data`.
        model: the teacher.
        data: the images.
        is_step: the run is a step of a recipe, which reads the test images and measures latency itself, at its end.
    """
    from pbd.pipeline import prepare  # loads the backend

    clock = _Clock()
    given_costs = cost_table.read_requested(config.execution.costs)
    with accounting.account(executor.readings) as account, prepare.prepare(config, model, data, display) as inputs:
        clock.lap("teacher")
        with error_files.recorded(inputs.journal, "run"):
            return _compress(_Context(config, given_costs, inputs, executor, clock, account, display, is_step))


@dataclass(frozen=True)
class _Context:
    """The objects that the steps of a run share."""

    config: RunConfig
    given_costs: cost_table.CostTable | None
    inputs: "Inputs"
    executor: Executor
    clock: "_Clock"
    account: accounting.EnergyAccount
    display: progress.ProgressDisplay
    is_step: bool


@dataclass(frozen=True)
class _BlockPhase:
    """The blocks that this session trained, without those of earlier sessions, and the assignment that it used."""

    results: list[BlockResult]
    assignment: Assignment
    predicted_from: str


def _compress(run: _Context) -> RunReport:
    from pbd.deploy import parity, targets
    from pbd.pipeline import choosing, remote_tasks
    from pbd.pipeline.kept_choices import KeptChoices
    from pbd.pipeline.proposals import Proposer
    from pbd.pipeline.workers import WorkerPool
    from pbd.student import model_files
    from pbd.student.builder import StudentBuilder

    config, inputs, journal = run.config, run.inputs, run.inputs.journal
    todo = {task.key: task for task in inputs.tasks if task.skip_reason is None}
    committed = {key: replace(result, from_journal=True) for key, result in journal.committed_blocks().items()}
    done = {key: result for key, result in committed.items() if key in todo}
    layers = len({task.layer.name for task in inputs.tasks})
    run.display.phase(f"{layers} layers, {len(todo)} blocks to train, {len(done)} already trained")
    if len(done) == len(todo) and manifest.is_intact(journal) and students.has_settings(report.read(journal), config):
        run.display.phase("this run is already complete: the report, with its times and energy, is the earlier one")
        return report.located(report.read(journal), journal)
    manifest.withdraw(journal)
    images, _ = next(iter(inputs.dataset.batches("validation", limit=parity.NUM_IMAGES)))
    model_files.check_teacher(journal.file("teacher.keras"), inputs.teacher, images)

    context = _context(config, inputs)
    pool = WorkerPool(run.executor, context, run.display.update)
    settled = inputs.settled(config)
    builder = StudentBuilder(inputs.teacher, inputs.dataset, inputs.tasks, settled, run.display, workers=pool)

    def proposer(results: Mapping[BlockKey, BlockResult]) -> Proposer:
        return Proposer(inputs.teacher, inputs.tasks, results, config, run.display, builder.assemble)

    perfect = {key: BlockResult(key.layer, "trained", key.design, val_kl=0.0) for key in todo}
    choosing.check_counted(proposer(perfect), config.student)
    block_phase = _train_blocks(run, context, list(todo.values()), done)
    shares = run.account.shares(block_phase.results, run.clock.laps["distill"])
    results = done | {result.key: result for result in shares.with_energy(block_phase.results)}

    (teacher_metrics,) = pool.evaluate([journal.file("teacher.keras")], "validation")
    damages = _refitted(run, pool, results) if config.student.chooses_together and config.student.refits else results
    target = targets.of_budget(config.execution.target)
    kept = KeptChoices.of(journal, config.student, target.name, damages.values())
    choices = choosing.choices(proposer(damages), kept, config.student, teacher_metrics.score)
    chosen, built = choosing.build(choices, builder, config.student.max_drop, teacher_metrics.score)
    student_result = _write_student(inputs, built, chosen.accepted, images)
    student_result = replace(student_result, events=(*chosen.events, *student_result.events))
    run.clock.lap("fine_tune")

    workers = shares.with_worker_energy(rows.worker_rows(block_phase.results, run.executor.num_workers))
    blocks = rows.block_rows(inputs.tasks, results, chosen.accepted, chosen.lowest, student_result.restored)
    deployed = _deploy(run, student_result.model)
    finished = _report(run, pool, block_phase, teacher_metrics, student_result, deployed, blocks, workers)
    finished = replace(finished, choice=chosen.report)
    report.write(finished, journal)
    manifest.write(journal, deployed.files)
    journal.remove_folder(remote_tasks.CHECKPOINTS)
    return finished


def _write_student(inputs: "Inputs", built: "Student", accepted: Mapping[str, BlockResult], images: Any) -> "Student":
    """Write the student in the precision of its teacher; return it with the events of its files.

    Args:
        inputs: of the run.
        built: the student in float32.
        accepted: the blocks that were accepted, by layer; some may have been restored since.
        images: preprocessed images on which the files are compared with the student.
    """
    from pbd.networks import precision
    from pbd.student import model_files

    layers = {layer.name for layer in inputs.teacher.layers}
    model = precision.restored(built.model, inputs.half, layers, accepted.keys() - built.restored.keys())
    deployed_files.remove(inputs.journal)
    events = model_files.write(inputs.journal, model, images)
    return replace(built, model=model, events=(*built.events, *events))


def _refitted(
    run: _Context, pool: "WorkerPool", results: Mapping[BlockKey, BlockResult]
) -> Mapping[BlockKey, BlockResult]:
    """Return the results with the divergences that are left when the layers behind a block are refitted.

    They are kept in the run directory, for the other budgets of a sweep.
    """
    from pbd.student import refitted_damages

    tasks = refitted_damages.to_measure(run.inputs.tasks, results)
    measured = refitted_damages.read(run.inputs.journal)
    missing = [task for task in tasks if task.key not in measured]
    if missing:
        run.display.phase(f"measuring {len(missing)} residual blocks, the convolutions behind each refitted")
        measured |= dict(zip((task.key for task in missing), pool.refitted_damages(missing), strict=True))
        refitted_damages.write(run.inputs.journal, measured)
    return refitted_damages.corrected(run.inputs.tasks, results, measured) if tasks else results


def _train_blocks(
    run: _Context, context: "TrainingContext", todo: list[BlockTask], done: Mapping[BlockKey, BlockResult]
) -> _BlockPhase:
    """Plan the block phase, train the missing blocks, and write the measured costs."""
    from pbd.pipeline.plan import carry_out, make_plan

    clock, display, executor, journal = run.clock, run.display, run.executor, run.inputs.journal
    missing = [task for task in todo if task.key not in done]
    if not missing:
        clock.lap("calibrate")
        clock.lap("distill")
        return _BlockPhase([], Assignment("none", (), ()), "no blocks to train")
    display.phase("predicting the training time of each layer")
    plan = make_plan(run.config.execution, run.given_costs, context, todo, missing, executor)
    clock.lap("calibrate")

    workers, details = executor.num_workers, "; ".join(filter(None, (plan.assignment.scheduler, plan.reason)))
    display.phase(f"training {len(missing)} blocks on {workers} workers ({details})")
    results = []
    for result in carry_out(plan.assignment, context, executor, display.update):
        if result.status == "trained":  # replaces the worker's entry, which lacks the worker's number and the times
            journal.commit_block(result)
        results.append(result)
    journal.write_json("costs.json", plan.measured_costs(results, str(journal.path)).as_json())
    clock.lap("distill")
    return _BlockPhase(results, plan.assignment, plan.predicted_from)


def _deploy(run: _Context, student: "keras.Model") -> "Deployed":
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
    run: _Context,
    pool: "WorkerPool",
    block_phase: _BlockPhase,
    teacher_metrics: "Metrics",
    student_result: "Student",
    deployed: "Deployed",
    blocks: Sequence[BlockReport],
    workers: Sequence[WorkerReport],
) -> RunReport:
    """Evaluate teacher and student on the test split, measure them where they are deployed, and return the report."""
    from pbd.analysis import class_changes
    from pbd.pipeline import model_facts

    config, inputs, journal = run.config, run.inputs, run.inputs.journal
    paths = journal.file("teacher.keras"), journal.file("student.keras")
    tested: Sequence[Metrics | None] = (None, None)
    counts = None
    if not run.is_step:
        run.display.phase("evaluating teacher and student on the test split")
        tested, counts = pool.evaluate_classes(paths, "test")
    return RunReport(
        config=config.flat() | inputs.recorded,
        versions=versions(),
        device=devices.describe(),
        teacher=model_facts.of(inputs.teacher, teacher_metrics, tested[0], paths[0]),
        assembled=model_facts.of(student_result.model, student_result.assembled),
        student=model_facts.of(student_result.model, student_result.metrics, tested[1], paths[1]),
        blocks=tuple(blocks),
        workers=tuple(workers),
        deployments=deployed.deployments,
        classes=class_changes.changes(counts) if counts else None,
        timing=run.clock.timing(block_phase),
        energy=run.account.summary(config.execution.resume),
        executor=run.executor.name,
        scheduler=block_phase.assignment.scheduler,
        groups=tuple(group.layer_names for group in block_phase.assignment.groups),
        reference="labels" if inputs.dataset.labelled else "teacher",
        fine_tune_history=student_result.history,
        events=(
            *(() if run.is_step else inputs.events),
            *damaged_images.events(journal),
            *rows.describe_retries(block_phase.results),
            *student_result.events,
            *deployed.events,
        ),
        run_dir=str(journal.path),
    )


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
