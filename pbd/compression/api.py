"""`pbd.compress`: compression steps in a row."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras

from pbd.compression import run_recipe
from pbd.compression.recipe import Recipe
from pbd.compression.step import Step
from pbd.config import BlockConfig, DataConfig, RunConfig, StudentConfig, TeacherConfig, TrainingConfig
from pbd.data import Data, check_data
from pbd.errors import UsageError
from pbd.networks import files
from pbd.records.recipe_report import RecipeReport
from pbd.system import random_state


@dataclass(frozen=True)
class Compressed:
    """What a recipe produced."""

    report: RecipeReport
    """The same as `recipe.json` in the run directory."""

    @property
    def run_dir(self) -> Path:
        """The run directory: `student.keras`, the report, and a folder for each step with its files."""
        return Path(self.report.run_dir)

    @functools.cached_property
    def model(self) -> keras.Model:
        """The result in float32, loaded from the run directory; not compiled.

        If its step wrote 8-bit integers, the file to deploy is `path` of `StepReport.quantized`.
        """
        return self.network(self.report.result)

    def network(self, name: str) -> keras.Model:
        """Return the network behind a step, by its name in the report, such as `1 prune_filters`; or `teacher`.

        Raises:
            UsageError: there is no such step.
        """
        paths = {step.name: step.network.path for step in self.report.steps}
        if name not in paths:
            raise UsageError(f"a network is named by its step. Received: {name!r}. Choose from: {', '.join(paths)}.")
        with random_state.preserved():
            return keras.models.load_model(self.run_dir / str(paths[name]), compile=False)

    def table(self) -> str:
        """Return the report as text, as `summary.txt` in the run directory has it."""
        from pbd.report import recipes

        return recipes.render(self.report)


@random_state.preserved()
def compress(
    model: keras.Model | None = None,
    data: Data | None = None,
    steps: Sequence[Step] = (),
    *,
    max_drop: float | None = None,
    targets: Sequence[str] | str | None = None,
    config: RunConfig | None = None,
    teacher: str | None = None,
    dataset: str | None = None,
    executor: str | None = None,
    workers: int | None = None,
    dask_address: str | None = None,
    isolate: bool | None = None,
    threads_per_worker: int | None = None,
    run_dir: str | None = None,
    resume: bool | None = None,
    seed: int | None = None,
) -> Compressed:
    """Compress a trained network by steps in a row.

    Each step gets the network of the step before it, the first network, and the images. It writes its own folder, so
    that a recipe that was interrupted goes on with the step that was interrupted; after a change, the steps from the
    first changed one on are done again.

    Started under `mpirun`, every rank calls this function and every rank returns the same result.

    Args:
        model: the trained network, functional or sequential, with one input of images, (n, height, width, channels),
            and one output of class scores, (n, classes), or (n, 1) for two classes. Alternatively `teacher` names a
            file or a built-in network.
        data: the images. Alternatively `dataset` names a file, a folder or a data set.
        steps: such as `pbd.PruneFilters(ratio=0.3)`, `pbd.FineTune(epochs=8)` and `pbd.Quantize()`; any object with
            their method `apply`.
        max_drop: the result is the network of the last step that loses at most this much validation accuracy (without
            labels: agreement), in [0, 1]; by default that of the last step. Of a step that writes 8-bit integers, the
            file is judged.
        targets: where each network is measured, in float32 and in 8-bit integers, such as `"openvino"`; by default that
            of `config`, and nowhere if the list is empty.
        config: settings of teacher, data and execution that no other argument gives, the `precision` of all trainings,
            and the `fine_tune_keep` of those that do not set one; see `pbd.RunConfig`. Settings of
            blocks, training and student belong to a step.
        teacher: see `pbd.distill`, as for all arguments below.
        dataset: see `pbd.Data.load`.
        executor: serial, mpi, dask, or auto.
        workers: their number.
        dask_address: the address of a Dask cluster.
        isolate: train in child processes.
        threads_per_worker: CPU threads of each worker.
        run_dir: the folder for the results; must be new, or that of the recipe to `resume`.
        resume: leave out the steps that are complete in `run_dir`.
        seed: everything random derives from it and from the numbers of the steps.

    Returns:
        The networks and the report.

    Raises:
        PbdError: the settings, the network or the data do not fit; the message is one line and names the remedy.

    Example:
        >>> result = pbd.compress(model, data, [pbd.FineTune(epochs=2), pbd.Quantize(method="qat")], run_dir="runs/a")
        >>> result.model, result.report.steps[-1].network.test_accuracy
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    if not isinstance(steps, Iterable):
        raise UsageError(f"steps must be a list. Received: {steps!r}. Give [{steps!r}].")
    steps_in_a_row = Recipe(tuple(steps), max_drop, _names(targets))
    chosen = _config(config or RunConfig(), model, data, settings)
    return Compressed(run_recipe.run(lambda: steps_in_a_row, chosen, model, data))


_SETTINGS = (
    "teacher",
    "dataset",
    "executor",
    "workers",
    "dask_address",
    "isolate",
    "threads_per_worker",
    "run_dir",
    "resume",
    "seed",
)


def _names(targets: Sequence[str] | str | None) -> tuple[str, ...] | None:
    return (targets,) if isinstance(targets, str) else None if targets is None else tuple(targets)


def _config(config: RunConfig, model: keras.Model | None, data: Data | None, settings: dict[str, Any]) -> RunConfig:
    """Return the settings of the recipe.

    Raises:
        UsageError: a setting contradicts the model or the data, or these are something else.
    """
    _check_of_steps(config)
    chosen = {name: value for name, value in settings.items() if value is not None}
    for value, name, kind in ((model, "model", TeacherConfig), (data, "data", DataConfig)):
        names = sorted(chosen.keys() & {field.name for field in fields(kind)})
        if value is not None and names:
            raise UsageError(f"{names[0]} contradicts {name}. Received: both. Leave one out.")
    if data is not None:
        check_data(data)
        config = replace(config, data=data.config)
    if model is not None:
        files.check_model(model)
        chosen["teacher"] = model.name
    return config.replace(**chosen)


def _check_of_steps(config: RunConfig) -> None:
    """Refuse settings that are those of a step, except where a recipe has one for all of its steps.

    Raises:
        UsageError: there is one.
    """
    of_steps = {field.name for kind in (BlockConfig, TrainingConfig, StudentConfig) for field in fields(kind)}
    values, defaults = config.flat(), RunConfig().flat()
    for name in sorted(of_steps - {"precision", "fine_tune_keep"}):
        if values[name] != defaults[name]:
            raise UsageError(
                f"{name} is a setting of a step. Received: {values[name]!r} in config. Give it to a step, such as "
                "ReplaceBlocks or FineTune."
            )
