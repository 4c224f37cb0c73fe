"""Do the steps of a recipe, leave out those that are complete, and write the report of all networks."""

import functools
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import step_reports
from pbd.compression.chain import Chain
from pbd.compression.context import Context
from pbd.compression.recipe import Recipe
from pbd.compression.step import StepResult, check_config, check_data, check_target, settings_of
from pbd.compression.step_folder import Finished
from pbd.config import RunConfig
from pbd.deploy import deployment, exporting, targets
from pbd.energy import accounting
from pbd.executors.base import Executor
from pbd.networks import files
from pbd.pipeline import prepare
from pbd.pipeline.prepare import Inputs, RunKind
from pbd.pipeline.versions import versions
from pbd.progress import ProgressDisplay
from pbd.records.recipe_report import RecipeReport, StepReport
from pbd.report import json_safe, recipe_files
from pbd.run_dir import damaged_images, error_files, manifest
from pbd.run_dir import steps as of_steps
from pbd.run_dir.journal import Journal
from pbd.system import devices

if TYPE_CHECKING:
    from pbd.data import Data

ROUNDING = 1e-9
"""Tolerance with which `max_drop` counts as kept."""


def run(
    recipe: Recipe,
    config: RunConfig,
    model: keras.Model | None,
    data: "Data | None",
    executor: Executor,
    display: ProgressDisplay,
) -> RecipeReport:
    """Do the steps on the workers of a session that is open; see `run_recipe.run`."""
    names = (config.execution.target,) if recipe.targets is None else recipe.targets
    chosen = tuple(dict.fromkeys(targets.for_run(name).name for name in names))
    first = names[0] if names else config.execution.target
    check_target(recipe.steps, targets.for_run(first))
    config = config.replace(target=targets.of_budget(first).name)
    check_config(recipe.steps, config)
    prepared = prepare.prepare(
        config,
        model,
        data,
        display,
        RunKind(
            tasks_of=lambda config, teacher: (),
            settings={"kind": of_steps.RECIPE},
            may_differ=("precision",),
            check_data=functools.partial(check_data, recipe.steps),
        ),
    )
    with prepared as inputs, error_files.recorded(inputs.journal, "recipe"):
        return _Run(recipe, config, inputs, executor, display, chosen).report()


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    config: RunConfig
    inputs: Inputs
    executor: Executor
    display: ProgressDisplay
    targets: tuple[str, ...]
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def report(self) -> RecipeReport:
        """Do the steps that are missing, measure all networks, write the report, and return it."""
        began = time.monotonic()
        inputs, journal = self.inputs, self.inputs.journal
        earlier = self._earlier_report()
        if earlier is not None:
            self.display.phase("already complete: the report, with its times and energy, is the earlier one")
            return earlier
        manifest.withdraw(journal)
        start = Finished(StepResult(inputs.teacher), self._context().evaluate(inputs.teacher), 0.0, None)
        finished = {deployment.TEACHER: start}
        with accounting.account(self.executor.readings) as account:
            chain = Chain(self._context(), self.recipe.steps, lambda: account.read().total_j)
            of_steps.write_names(journal, chain.names)
            finished |= dict(chain.networks(inputs.teacher))
        chosen = _last_within(finished, self.recipe.max_drop)
        files.save_model(journal, "student.keras", finished[chosen].result.model)
        report = RecipeReport(
            config=_settings(inputs.with_resolved_keep(self.config)) | inputs.data_settings,
            versions=versions(),
            device=devices.describe(),
            steps=tuple(self._step_reports(finished)),
            result=chosen,
            max_drop=self.recipe.max_drop,
            reference="labels" if inputs.dataset.labelled else "teacher",
            targets=self.targets,
            events=(*inputs.events, *damaged_images.events(journal)),
            seconds=time.monotonic() - began,
            run_dir=str(journal.path),
        )
        records = of_steps.records(chain.names)
        manifest.record(journal, [*recipe_files.write(report, journal), *records, *_quantized_files(finished, journal)])
        return report

    def _earlier_report(self) -> RecipeReport | None:
        """Return the report that the run directory holds if it is of these steps, and no file of theirs has changed."""
        journal = self.inputs.journal
        if not manifest.is_intact(journal):
            return None
        earlier, context = recipe_files.read(journal), self._context()
        names = [deployment.TEACHER, *Chain(context, self.recipe.steps).names]
        steps = json_safe(dict(zip(names, self._settings_of_steps(), strict=True)))
        same_steps = steps == {step.name: step.settings for step in earlier.steps}
        settings, kept = _settings(context.config), earlier.config
        same_settings = all(kept.get(name) == settings[name] for name in ("target", "fine_tune_keep", "precision"))
        same_choices = (earlier.targets, earlier.max_drop) == (self.targets, self.recipe.max_drop)
        is_the_same = same_steps and same_choices and same_settings
        return replace(earlier, run_dir=str(journal.path)) if is_the_same else None

    def _settings_of_steps(self) -> list[dict[str, Any]]:
        """Return the settings of each network of the report; the first one is no step's."""
        return [{}, *map(settings_of, self.recipe.steps)]

    def _step_reports(self, finished: dict[str, Finished]) -> Iterator[StepReport]:
        settings = dict(zip(finished, self._settings_of_steps(), strict=True))
        return step_reports.make(finished, settings, self._context(), self.targets)

    def _context(self) -> Context:
        inputs = self.inputs
        return Context(
            teacher=inputs.teacher,
            teacher_path=inputs.journal.file("teacher.keras"),
            dataset=inputs.dataset,
            config=replace(inputs.with_resolved_keep(self.config), data=inputs.data_config),
            target=inputs.target,
            journal=inputs.journal,
            executor=self.executor,
            display=self.display,
            seed=self.config.seed,
            session=self.session,
        )


def _quantized_files(finished: dict[str, Finished], journal: Journal) -> Iterator[str]:
    """Yield the names, in the run directory, of all files in 8-bit integers."""
    for finished_step in finished.values():
        for path in finished_step.result.quantized.values():
            yield from (str(part.relative_to(journal.path)) for part in exporting.files_of(path))


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that are not those of one step, in plain JSON types."""
    sections = (config.teacher, config.data, config.execution)
    values = {name: value for section in sections for name, value in asdict(section).items()}
    others = {"seed": config.seed, "fine_tune_keep": config.student.fine_tune_keep}
    return json_safe(values | others | {"precision": config.training.precision})


def _last_within(finished: dict[str, Finished], max_drop: float | None) -> str:
    """Return the name of the last step that keeps within `max_drop` of the first network."""
    first = finished[deployment.TEACHER].score
    within = [
        name
        for name, finished_step in finished.items()
        if max_drop is None or first - finished_step.score <= max_drop + ROUNDING
    ]
    return within[-1]
