"""Everything a run needs before the first block is trained: the teacher, the data, the run directory."""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras

from pbd import blocks
from pbd import data as datasets
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import DataConfig, RunConfig
from pbd.data import Data, Dataset, IndexedSplit
from pbd.data.shapes import as_text, fit_shape
from pbd.data.sources import DIGITS_CLASSES, DIGITS_SHAPE
from pbd.deploy import targets
from pbd.deploy.targets import Target
from pbd.errors import BadInputError, UsageError
from pbd.networks import files, graph, heads, precision
from pbd.networks.digest import model_digest
from pbd.pipeline import teacher_check, teachers
from pbd.pipeline.teachers import TeacherSource
from pbd.progress import ProgressDisplay
from pbd.records import BlockTask
from pbd.run_dir import damaged_images, lock
from pbd.run_dir.atomic import open_atomically
from pbd.run_dir.journal import Journal
from pbd.system import watchdog

ARRAYS_FILE = "data.npz"
"""Arrays that were given from Python; worker processes read them from the run directory until the run ends."""


@dataclass(frozen=True)
class Inputs:
    """The teacher, the data and the run directory of a run."""

    teacher: keras.Model
    """Flat and functional, with its weights; in float32 where the network has half precision."""
    half: dict[str, str]
    """The dtype policies of the layers that had half precision, by layer."""
    dataset: Dataset
    data_config: DataConfig
    """Loads the same data in every worker: without `auto`, relative paths and arrays."""
    journal: Journal
    tasks: tuple[BlockTask, ...]
    """One for every convolution of the teacher with a kernel larger than 1x1, also for layers that are skipped."""
    target: Target
    """The target in which teacher and student are measured, in float32."""
    teacher_is_pretrained: bool = True
    """Whether the teacher was already trained, probably on all training images of the data."""
    events: tuple[str, ...] = ()
    """The events of the preparation, for the report."""

    @property
    def recorded(self) -> dict[str, str]:
        """The settings of the data as reports have them: they hold in every folder, and for every teacher."""
        name = self.dataset.name
        source = name if name == datasets.ARRAYS else self.data_config.dataset
        return {"dataset": source, "preprocess": self.dataset.preprocess}

    def with_resolved_keep(self, config: RunConfig) -> RunConfig:
        """Return the settings of the run without `auto` for the epoch with which fine-tuning ends."""
        if config.student.fine_tune_keep != "auto":
            return config
        knows_validation = self.teacher_is_pretrained and "validation" in self.dataset.split_off
        return config.replace(fine_tune_keep="last" if knows_validation else "best")


def _tasks(config: RunConfig, teacher: keras.Model) -> tuple[BlockTask, ...]:
    choice = config.blocks
    return enumerate_tasks(
        teacher,
        *map(blocks.get, choice.designs),
        patterns=choice.layers,
        include_unprofitable=choice.include_unprofitable,
    )


@contextlib.contextmanager
def prepare(
    config: RunConfig,
    model: keras.Model | None,
    data: Data | None,
    display: ProgressDisplay,
    tasks_of: Callable[[RunConfig, keras.Model], tuple[BlockTask, ...]] = _tasks,
    kind: Mapping[str, Any] = MappingProxyType({}),
    may_differ: Collection[str] = (),
    check_data: Callable[[Dataset], object] = lambda dataset: None,
    check_tasks: Callable[[keras.Model, Sequence[BlockTask]], object] = lambda teacher, tasks: None,
) -> Iterator[Inputs]:
    """Load or train the teacher, load the data, and open the run directory and lock it until the block ends.

    Nothing is written if the teacher, the data or the settings do not fit.

    Args:
        config: settings of the run; with the settings of `data`, if there are any.
        model: the teacher, if it was given from Python.
        data: the data, if they were given from Python.
        display: receives phases and progress.
        tasks_of: returns the tasks of a teacher; by default those of the settings.
        kind: settings besides those of `config` that a resumed run must share.
        may_differ: settings of `config` that it need not share.
        check_data: raises an error if something else does not fit the data.
        check_tasks: raises an error if something else does not fit the teacher and its tasks.

    Raises:
        PbdError: the teacher, the data or the settings do not fit, or the run directory cannot be used.
    """
    check_designs(config)
    target = targets.for_run(config.execution.target)
    directory = _directory(config)
    source = teachers.resolve(config, model, directory, display, functools.partial(tasks_of, config))
    source.check()
    if data is None and config.data.dataset == DataConfig.dataset:
        _check_default_data(config, source)
    preprocess = source.preprocessing() if config.data.preprocess == "auto" else config.data.preprocess
    data_config = replace(config.data, preprocess=preprocess)
    raw = data.raw_splits(data_config.labels) if data else None
    dataset = datasets.load(data_config, config.seed, source.image_shape(), raw=raw)
    dataset.check_trainable()
    _check_labels(config, dataset)
    check_data(dataset)
    loaded = source.load(functools.partial(_labelled, data_config, data, dataset))
    flat = graph.flatten(loaded, dataset.image_shape)
    teacher = precision.in_float32(flat)
    _check_outputs(teacher, dataset)
    is_pretrained = source.is_pretrained(teacher.output_shape[-1])
    events = teacher_check.check(teacher, dataset, config.execution.allow_weak_teacher, is_pretrained)
    if is_pretrained:
        events += _of_seen_images(dataset)
    identity = _identity(config, source, teacher, dataset) | dict(kind)
    tasks = tasks_of(config, teacher)
    check_tasks(teacher, tasks)
    if config.execution.resume:
        journal = Journal.resume(directory, identity, may_differ)
    else:
        keys = [task.key for task in tasks if task.skip_reason is None]
        if config.execution.run_dir is None:
            directory = _new_folder(directory)
        journal = Journal.create(directory, identity, keys)
    with lock.held(directory):
        journal.remove_temporary_files()
        dataset.observe_damaged_files(functools.partial(damaged_images.write, journal))
        teacher = _kept(journal, teacher, identity["teacher_sha256"])
        labels = "" if dataset.labelled else " (no labels: judged by agreement with the teacher)"
        display.phase(f"teacher {config.teacher.teacher}, dataset {dataset.name}{labels}; run directory {directory}")
        for event in events:
            display.phase(event)
        with _reachable(data_config, data, journal) as reachable:
            half = precision.policies(flat, named=teacher)
            tasks = tasks_of(config, teacher)
            yield Inputs(teacher, half, dataset, reachable, journal, tasks, target, is_pretrained, events)


def _of_seen_images(dataset: Dataset) -> tuple[str, ...]:
    """Return an event for the report if a trained teacher probably knows images on which it is judged."""
    if not dataset.split_off:
        return ()
    splits = " and ".join(dataset.split_off)
    remedy = "Give new ones, or --validation-from test" if dataset.split_off == ("validation",) else "Give new ones"
    return (
        f"the {splits} images were split off the training images: a teacher that was trained on them looks better "
        f"there than on new images, and its student worse beside it. {remedy}",
    )


def _check_default_data(config: RunConfig, source: TeacherSource) -> None:
    """Refuse the built-in digits, which are the data if none are given, for a trained teacher of other images.

    Raises:
        UsageError: the shape of its images or the number of its classes is another one.
    """
    shape, outputs = source.image_shape(), source.num_outputs()
    if shape is None or outputs is None:  # a network that is built for the data
        return
    with contextlib.suppress(BadInputError):
        fit_shape(DIGITS_SHAPE, shape, config.data.image_size, resizable=False)
        if outputs == DIGITS_CLASSES:
            return
    raise UsageError(
        "a trained teacher needs data that fit it. Received: no data, or the built-in digits "
        f"({as_text(DIGITS_SHAPE)}, {DIGITS_CLASSES} classes), for {config.teacher.teacher!r} "
        f"({as_text(shape)}, {outputs} outputs). Give --dataset; in Python, data."
    )


def _identity(config: RunConfig, source: TeacherSource, teacher: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """Return the settings and the content that the blocks depend on; names and paths count where no digest does.

    The settings of the student choose among the blocks and train it, so that a run can be resumed with others.
    """
    return {
        **config.block_settings(),
        **source.identity(),
        **({} if dataset.digest_is_complete else {"dataset": datasets.absolute(config.data.dataset)}),
        "preprocess": dataset.preprocess,
        "teacher_sha256": model_digest(teacher),
        "data_sha256": dataset.digest(),
    }


@contextlib.contextmanager
def _reachable(config: DataConfig, data: Data | None, journal: Journal) -> Iterator[DataConfig]:
    """Provide settings that load the same data in every worker; arrays lie in the run directory meanwhile."""
    if data is None or data.source is not None:
        yield replace(config, dataset=datasets.absolute(config.dataset))
        return
    path = journal.file(ARRAYS_FILE)
    # Overwritten if it exists: a killed process may have left it incomplete.
    with watchdog.waiting(), open_atomically(path) as stream:
        data.save(stream)
    try:
        yield replace(config, dataset=str(path))
    finally:
        path.unlink(missing_ok=True)


def check_designs(config: RunConfig) -> None:
    """Refuse block designs that do not exist, and workers that are to share batches but cannot.

    Raises:
        UsageError: a name is that of no design; or workers are to share batches, and a design has batch statistics or
            blocks are trained in float16.
    """
    designs = [blocks.get(name) for name in config.blocks.designs]
    if config.execution.parallel != "data":
        return
    if config.training.precision == "float16":
        raise UsageError(
            "parallel data needs gradients that add up, which those of a scaled loss do not. Received: precision "
            "float16. Give --precision bfloat16, or --parallel task."
        )
    with_statistics = [design.name for design in designs if not design.per_image]
    if with_statistics:
        raise UsageError(
            "parallel data needs blocks without batch normalisation, which sees the whole batch. Received: block "
            f"{with_statistics[0]}. Give --parallel task, or --block decoupled_r2."
        )


def _kept(journal: Journal, teacher: keras.Model, digest: str) -> keras.Model:
    """Return the teacher that the run directory holds; write `teacher` into it if it holds none or a damaged one.

    Tasks and results are keyed by the layer names of the first process, which a model that was built again may lack.
    """
    with contextlib.suppress(BadInputError):
        kept = files.load_own(journal.file("teacher.keras"))
        if model_digest(kept) == digest:
            return kept
    save_model(journal, "teacher.keras", teacher)
    return teacher


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
    if outputs == 1:
        _check_single_output(teacher, classes)
    elif classes is not None and outputs < classes:
        raise BadInputError(
            f"the teacher must have an output for each class, and labels count from 0. Received: {outputs} outputs "
            f"for labels up to {classes - 1} of {dataset.name!r}. {_remedy_for_labels(outputs, dataset)}"
        )


def _check_single_output(teacher: keras.Model, classes: int | None) -> None:
    """Refuse a single output that is not the score of class 1 of two, as far as network and labels tell."""
    is_sigmoid = heads.head_of(teacher) is heads.Head.SIGMOID
    if not (is_sigmoid or heads.ends_in_logits(teacher)):  # what a last sigmoid reads is a logit
        raise BadInputError(
            "a single output must come from a sigmoid or from a layer without activation. "
            f"Received: a teacher that ends in {teacher.layers[-1].name!r}. "
            "Train it with Dense(1, activation='sigmoid'), or with an output for each class."
        )
    if classes is not None and classes > 2:
        raise BadInputError(
            f"a teacher with one output has the classes 0 and 1. Received: labels up to {classes - 1}. "
            "Correct the labels, or give a teacher with an output for each class."
        )


def _remedy_for_labels(outputs: int, dataset: Dataset) -> str:
    """Return what to do about labels that are as large as the number of outputs, or larger."""
    if outputs + 1 == dataset.num_classes and isinstance(dataset.train, IndexedSplit) and dataset.train.labels.min():
        return "The labels count from 1: subtract 1 from all of them, or give --no-labels."
    return "Correct the labels, give a teacher for these classes, or give --no-labels."


def _check_labels(config: RunConfig, dataset: Dataset) -> None:
    loss = config.student.fine_tune_loss
    if config.student.needs_labels and not dataset.labelled:
        raise BadInputError(
            f"--fine-tune-loss {loss} needs labels. Received: {dataset.name!r}, which has none. Give kd_mse or kd_kl."
        )


def _directory(config: RunConfig) -> Path:
    """Return the run directory; a directory that cannot be used is refused before any work.

    If the settings name none, another run that starts within the same second may have the same (see `_new_folder`).
    """
    if config.execution.run_dir is None:
        name = Path(config.teacher.teacher).stem
        dataset = Path(config.data.dataset).stem.replace(":", "-")
        return (Path("runs") / f"{name}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    lock.check(Path(config.execution.run_dir))
    Journal.check(config.execution.run_dir, config.execution.resume)
    return Path(config.execution.run_dir).absolute()


def _new_folder(path: Path) -> Path:
    """Create a folder of this name, or if there is one, of this name and a number, and return its path."""
    new, number = path, 1
    while True:
        try:
            new.mkdir(parents=True)
            return new
        except FileExistsError:  # another run has started within this second
            number += 1
            new = path.with_name(f"{path.name}-{number}")
        except OSError:
            return new  # `Journal.create` says why it cannot be created


def save_model(journal: Journal, name: str, model: keras.Model) -> Path:
    """Write the model into the run directory, atomically, and return its path."""
    return journal.write_bytes(name, files.model_bytes(model))
