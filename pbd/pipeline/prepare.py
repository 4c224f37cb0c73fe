"""Everything a run needs before the first block is trained: the teacher, the data, the run directory."""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from pbd import blocks
from pbd import data as datasets
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import NEED_LABELS, DataConfig, RunConfig
from pbd.data import Data, Dataset, IndexedSplit
from pbd.errors import BadInputError, UsageError
from pbd.networks import files, graph
from pbd.pipeline import teacher_check, teachers
from pbd.progress import ProgressDisplay
from pbd.records import BlockTask
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal, open_atomically

ARRAYS_FILE = "data.npz"
"""Arrays that were given from Python; worker processes read them from the run directory until the run ends."""


@dataclass(frozen=True)
class Inputs:
    """The teacher, the data and the run directory of a run."""

    teacher: keras.Model
    """Flat and functional, with its weights."""
    dataset: Dataset
    data_config: DataConfig
    """Loads the same data in every worker: without `auto`, relative paths and arrays."""
    journal: Journal
    tasks: tuple[BlockTask, ...]
    """One for every convolution of the teacher with a kernel larger than 1x1, also for layers that are skipped."""
    events: tuple[str, ...] = ()
    """Of the preparation, for the report."""


@contextlib.contextmanager
def prepare(
    config: RunConfig, model: keras.Model | None, data: Data | None, display: ProgressDisplay
) -> Iterator[Inputs]:
    """Load or train the teacher, load the data, and open the run directory and lock it until the block ends.

    Nothing is written if the teacher, the data or the settings do not fit.

    Args:
        config: settings of the run; with the settings of `data`, if there are any.
        model: the teacher, if it was given from Python.
        data: the data, if they were given from Python.
        display: receives phases and progress.

    Raises:
        PbdError: the teacher, the data or the settings do not fit, or the run directory cannot be used.
    """
    check_design(config)
    directory = _directory(config)
    source = teachers.resolve(config, model, directory, display, functools.partial(_tasks, config))
    source.check()
    preprocess = source.preprocessing() if config.data.preprocess == "auto" else config.data.preprocess
    data_config = replace(config.data, preprocess=preprocess)
    raw = data.raw_splits(data_config.labels) if data else None
    dataset = datasets.load(data_config, config.seed, source.image_shape(), raw=raw)
    _check_labels(config, dataset)
    loaded = source.load(functools.partial(_labelled, data_config, data, dataset))
    teacher = graph.flatten(loaded, dataset.image_shape)
    _check_outputs(teacher, dataset)
    tasks = _tasks(config, teacher)
    events = teacher_check.check(teacher, dataset, config.execution.allow_weak_teacher)
    identity = {
        **config.student_settings(),
        "teacher_sha256": files.model_digest(teacher),
        "data_sha256": dataset.digest(),
    }
    if config.execution.resume:
        journal = Journal.resume(directory, identity)
    else:
        journal = Journal.create(directory, identity, [task.key for task in tasks if task.skip_reason is None])
    with lock.held(directory):
        _keep(journal, teacher)
        labels = "" if dataset.labelled else " (no labels: judged by agreement with the teacher)"
        display.phase(f"teacher {config.teacher.teacher}, dataset {dataset.name}{labels}; run directory {directory}")
        for event in events:
            display.phase(event)
        with _reachable(data_config, data, journal) as reachable:
            yield Inputs(teacher, dataset, reachable, journal, tasks, events)


def _tasks(config: RunConfig, teacher: keras.Model) -> tuple[BlockTask, ...]:
    choice = config.blocks
    return enumerate_tasks(teacher, blocks.get(choice.block), choice.layers, choice.include_unprofitable)


@contextlib.contextmanager
def _reachable(config: DataConfig, data: Data | None, journal: Journal) -> Iterator[DataConfig]:
    """Provide settings that load the same data in every worker; arrays lie in the run directory meanwhile."""
    if data is None or data.source is not None:
        yield replace(config, dataset=datasets.absolute(config.dataset))
        return
    path = journal.file(ARRAYS_FILE)
    # Overwritten if it exists: a killed process may have left it incomplete.
    with open_atomically(path) as stream:
        data.save(stream)
    try:
        yield replace(config, dataset=str(path))
    finally:
        path.unlink(missing_ok=True)


def check_design(config: RunConfig) -> None:
    """Refuse a block design that does not exist or does not fit the settings.

    Raises:
        UsageError: no design has this name, or it has batch statistics and workers are to share batches.
    """
    design = blocks.get(config.blocks.block)
    if config.execution.parallel == "data" and not design.per_image:
        raise UsageError(
            "parallel data needs blocks without batch normalisation, which sees the whole batch. Received: block "
            f"{design.name}. Give --parallel task, or --block decoupled_r2."
        )


def _keep(journal: Journal, teacher: keras.Model) -> None:
    """Write the teacher into the run directory, unless it is there already."""
    with contextlib.suppress(BadInputError):
        if files.model_digest(files.load_own(journal.file("teacher.keras"))) == files.model_digest(teacher):
            return
    save_model(journal, "teacher.keras", teacher)


def _labelled(config: DataConfig, data: Data | None, dataset: Dataset) -> Dataset:
    """Return the data with their labels, in the same splits: a built-in teacher is trained on labels in any case."""
    if not dataset.labelled and not config.labels:
        with_labels, raw = replace(config, labels=True), data.raw_splits(labels=True) if data else None
        dataset = datasets.load(
            with_labels, dataset.seed, dataset.image_shape, split_by_class=False, raw=raw, check=False
        )
    if not dataset.labelled:
        raise BadInputError(
            f"a built-in teacher is trained on labels. Received: {dataset.name!r}, which has none. "
            "Give a trained model with --teacher FILE."
        )
    return dataset


def _check_outputs(teacher: keras.Model, dataset: Dataset) -> None:
    outputs, classes = teacher.output.shape[-1], dataset.num_classes
    if classes is None and outputs < 2:
        raise BadInputError(f"the teacher must have an output for each of two classes or more. Received: {outputs}.")
    if classes is not None and outputs < classes:
        raise BadInputError(
            f"the teacher must have an output for each class, and labels count from 0. Received: {outputs} outputs "
            f"for labels up to {classes - 1} of {dataset.name!r}. {_remedy_for_labels(outputs, dataset)}"
        )


def _remedy_for_labels(outputs: int, dataset: Dataset) -> str:
    """Return what to do about labels that are as large as the number of outputs, or larger."""
    if outputs + 1 == dataset.num_classes and isinstance(dataset.train, IndexedSplit) and dataset.train.labels.min():
        return "The labels count from 1: subtract 1 from all of them, or give --no-labels."
    return "Correct the labels, give a teacher for these classes, or give --no-labels."


def _check_labels(config: RunConfig, dataset: Dataset) -> None:
    loss = config.student.fine_tune_loss
    if loss in NEED_LABELS and not dataset.labelled:
        raise BadInputError(
            f"--fine-tune-loss {loss} needs labels. Received: {dataset.name!r}, which has none. Give kd_mse or kd_kl."
        )


def _directory(config: RunConfig) -> Path:
    """Return the run directory; a directory that cannot be used is refused before any work."""
    if config.execution.run_dir is None:
        name = Path(config.teacher.teacher).stem
        dataset = Path(config.data.dataset).stem.replace(":", "-")
        return (Path("runs") / f"{name}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    lock.check(Path(config.execution.run_dir))
    Journal.check(config.execution.run_dir, config.execution.resume)
    return Path(config.execution.run_dir).absolute()


def save_model(journal: Journal, name: str, model: keras.Model) -> Path:
    """Write the model into the run directory, atomically, and return its path."""
    return journal.write_bytes(name, files.model_bytes(model))
