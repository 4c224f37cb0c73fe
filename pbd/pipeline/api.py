"""The public Python interface of a run: `pbd.distill` and the result that it returns."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbd.config import DataConfig, RunConfig, TeacherConfig
from pbd.errors import UsageError
from pbd.pipeline.sweep import run
from pbd.records import RunReport
from pbd.system import random_state

if TYPE_CHECKING:
    import keras

    from pbd.data import Data


@dataclass(frozen=True)
class Result:
    """What a run produced."""

    report: RunReport
    """The same as `report.json` in the run directory."""

    @property
    def run_dir(self) -> Path:
        """The run directory, which holds the models, the trained blocks and the report."""
        return Path(self.report.run_dir)

    @functools.cached_property
    def model(self) -> "keras.Model":
        """The student, loaded from the run directory; not compiled."""
        import keras

        with random_state.preserved():
            return keras.models.load_model(self.run_dir / "student.keras", compile=False)

    @functools.cached_property
    def front(self) -> "Mapping[str, RunReport]":
        """The reports of the students of `sweep`, by budget; empty without `sweep`."""
        from pbd.pipeline import students

        return students.read(self.run_dir)

    def table(self) -> str:
        """Return the report as text, as `summary.txt` in the run directory has it."""
        from pbd.report import render

        return render(self.report)


def distill(
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    config: RunConfig | None = None,
    recipe: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    teacher_epochs: int | None = None,
    dataset: str | None = None,
    validation_fraction: float | None = None,
    validation_from: str | None = None,
    train_limit: int | None = None,
    batch_size: int | None = None,
    preprocess: str | None = None,
    augment: str | None = None,
    image_size: int | None = None,
    labels: bool | None = None,
    split_seed: int | None = None,
    block: Sequence[str] | str | None = None,
    block_init: str | None = None,
    layers: Sequence[str] | str | None = None,
    include_unprofitable: bool | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
    precision: str | None = None,
    accuracy_threshold: float | None = None,
    max_accuracy_drop: float | None = None,
    budget: Sequence[str] | str | None = None,
    sweep: str | None = None,
    max_drop: float | None = None,
    target_batch: int | None = None,
    refit: bool | None = None,
    fine_tune_epochs: int | None = None,
    fine_tune_scope: str | None = None,
    fine_tune_keep: str | None = None,
    fine_tune_learning_rate: float | None = None,
    fine_tune_loss: str | None = None,
    temperature: float | None = None,
    distillation_weight: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    keep_zeros: bool | None = None,
    target_accuracy_drop: float | None = None,
    executor: str | None = None,
    scheduler: str | None = None,
    parallel: str | None = None,
    workers: int | None = None,
    dask_address: str | None = None,
    dask_insecure: bool | None = None,
    costs: str | None = None,
    group: bool | None = None,
    memory_limit: float | None = None,
    isolate: bool | None = None,
    stall_limit: float | None = None,
    threads_per_worker: int | None = None,
    target: str | None = None,
    run_dir: str | None = None,
    resume: bool | None = None,
    allow_weak_teacher: bool | None = None,
    verbose: bool | None = None,
    seed: int | None = None,
) -> Result:
    """Compress a trained network by parallel blockwise distillation.

    Started under `mpirun`, every rank calls this function and every rank returns the same result. The process is left
    as it was: environment, thread limits, random state and registered Keras objects.

    Args:
        model: the trained network (the teacher), functional or sequential, with one input of images, (n, height, width,
            channels), and one output of class scores, (n, classes), or (n, 1) for two classes. Alternatively `teacher`
            names a file or a built-in network.
        data: the images. Alternatively `dataset` names a file, a folder or a data set.
        config: settings for everything that no other argument gives.
        recipe: `quick`, `standard`, `patient` or `paper`: other values for the settings, those of `data` too, that are
            at their defaults. An argument wins.
        teacher: a `.keras` or `.h5` file, `digits_cnn`, or a `keras.applications` name.
        dataset: see `pbd.Data.load`.
        block: replacement designs, from which `budget`, `sweep` or `max_drop` chooses; by default the library. With
            designs alone, such as `decoupled_r2`, each layer gets the accepted one that computes least.
        epochs: passes over the training images for each block; by default 0 where the student is refitted, else 3.
        validation_from: if the data have no validation split, `train` or `test`: where its images are taken from.
        max_accuracy_drop: a block is rejected if the teacher with only this block loses more validation accuracy, in
            [0, 1]; only without `budget`, `sweep` and `max_drop`.
        budget: what the student may need, such as `"latency:0.5"` or `"macs:0.3"`: the candidates with the least
            divergence from the teacher that keep within it are chosen.
        sweep: several budgets such as `"latency:0.8,0.6,0.4"`: a student for each (see `Result.front`).
        max_drop: without a budget, the fastest student that loses at most this much validation accuracy, in [0, 1];
            without any other choice of blocks, 0.01.
        fine_tune_epochs: passes over the training images for the assembled student.
        fine_tune_keep: the epoch whose weights fine-tuning ends with: `best`, `last` or `auto`.
        target: where teacher and student are measured, and where latencies and bytes are limited, such as `onnx` or
            `openvino-int8`; see `pbd.measure_latency`.
        run_dir: the folder for the results; must be new, or that of the run to `resume`.
        seed: everything random derives from it and from layer names.

    Each remaining argument is the setting of the same name of `pbd.RunConfig`, which documents it, and of the command
    line. None means the default.

    Returns:
        The student and the report.

    Raises:
        PbdError: the settings, the teacher or the data do not fit; the message is one line and names the remedy. Its
            subclass tells the kind (see `pbd.errors`).

    Example:
        >>> data = pbd.Data(train=(x, y), test=(x_test, y_test), batch_size=64, augment="flip_crop")
        >>> result = pbd.distill(model, data, max_drop=0.01, fine_tune_epochs=8, run_dir="runs/first")
        >>> result.model, result.report.student.test_accuracy
    """
    settings = {name: value for name, value in locals().items() if name not in _OBJECTS and value is not None}
    _check_given_once(model, data, settings)
    _check_kinds(model, data)
    chosen = config or RunConfig()
    if data is not None:
        chosen = replace(chosen, data=data.config)
    chosen = chosen.replace(**settings)
    if model is not None:
        chosen = chosen.replace(teacher=model.name)
    return Result(run(chosen, model, data))


_OBJECTS = ("model", "data", "config")


def _check_kinds(model: object, data: object) -> None:
    """Refuse a model or data that are something else, such as a path."""
    if model is not None:
        from pbd.networks import files

        files.check_model(model)
    if data is not None:
        from pbd.data import check_data

        check_data(data)


def _check_given_once(model: object, data: object, settings: Mapping[str, Any]) -> None:
    """Refuse settings that contradict a model or data given as objects."""
    for value, name, kind, remedy in (
        (model, "model", TeacherConfig, "give either the model or its name"),
        (data, "data", DataConfig, "give it to pbd.Data"),
    ):
        names = sorted(settings.keys() & {field.name for field in fields(kind)})
        if value is not None and names:
            raise UsageError(f"{names[0]} contradicts {name}. Received: {names[0]}={settings[names[0]]!r}; {remedy}.")
