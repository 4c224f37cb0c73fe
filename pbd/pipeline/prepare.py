"""Everything a run needs before the first block is trained: the teacher, the data, the run directory."""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

from pbd import blocks
from pbd import data as datasets
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import DataConfig, RunConfig
from pbd.data import Data, Dataset
from pbd.deploy import targets
from pbd.deploy.targets import Target
from pbd.errors import BadInputError
from pbd.networks import files, graph, precision
from pbd.networks.digest import model_digest
from pbd.pipeline import input_checks, teacher_check, teachers
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
    def data_settings(self) -> dict[str, str]:
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


@dataclass(frozen=True)
class RunKind:
    """What a run prepares besides teacher and data; by default, to distill blocks."""

    tasks_of: Callable[[RunConfig, keras.Model], tuple[BlockTask, ...]] = _tasks
    """Returns the tasks of a teacher."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings besides those of `RunConfig` that a resumed run must share."""
    may_differ: Collection[str] = ()
    """Settings of `RunConfig` that a resumed run need not share."""
    check_data: Callable[[Dataset], object] = lambda dataset: None
    """Raises an error if something else does not fit the data."""
    check_tasks: Callable[[keras.Model, Sequence[BlockTask]], object] = lambda teacher, tasks: None
    """Raises an error if something else does not fit the teacher and its tasks."""


@contextlib.contextmanager
def prepare(
    config: RunConfig,
    model: keras.Model | None,
    data: Data | None,
    display: ProgressDisplay,
    kind: RunKind = RunKind(),
) -> Iterator[Inputs]:
    """Load or train the teacher, load the data, and open the run directory and lock it until the block ends.

    Nothing is written if the teacher, the data or the settings do not fit.

    Args:
        config: settings of the run; with the settings of `data`, if there are any.
        model: the teacher, if it was given from Python.
        data: the data, if they were given from Python.
        display: receives phases and progress.
        kind: what else is prepared.

    Raises:
        PbdError: the teacher, the data or the settings do not fit, or the run directory cannot be used.
    """
    input_checks.check_designs(config)
    target = targets.for_run(config.execution.target)
    directory = _directory(config)
    source = teachers.resolve(config, model, directory, display, functools.partial(kind.tasks_of, config))
    source.check()
    data_config, dataset = _load_data(config, data, source)
    kind.check_data(dataset)
    loaded = source.load(functools.partial(_labelled, data_config, data, dataset))
    flat = graph.flatten(loaded, dataset.image_shape)
    teacher = precision.in_float32(flat)
    input_checks.check_outputs(teacher, dataset)
    is_pretrained = source.is_pretrained(teacher.output_shape[-1])
    events = teacher_check.check(teacher, dataset, config.execution.allow_weak_teacher, is_pretrained)
    if is_pretrained:
        events += _events_of_seen_images(dataset)
    tasks = kind.tasks_of(config, teacher)
    kind.check_tasks(teacher, tasks)
    identity = _identity(config, source, teacher, dataset) | dict(kind.settings)
    journal = _open_journal(config, directory, identity, tasks, kind.may_differ)
    with lock.held(journal.path):
        journal.remove_temporary_files()
        dataset.observe_damaged_files(functools.partial(damaged_images.write, journal))
        teacher = _stored_teacher(journal, teacher, identity["teacher_sha256"])
        _announce(display, config, dataset, journal, events)
        with _data_for_workers(data_config, data, journal) as of_workers:
            half = precision.policies(flat, named=teacher)
            tasks = kind.tasks_of(config, teacher)  # layers of a stored teacher may have other names
            yield Inputs(teacher, half, dataset, of_workers, journal, tasks, target, is_pretrained, events)


def _load_data(config: RunConfig, data: Data | None, source: TeacherSource) -> tuple[DataConfig, Dataset]:
    """Return the settings of the data, without `auto` for the preprocessing, and the data."""
    if data is None and config.data.dataset == DataConfig.dataset:
        input_checks.check_default_data(config, source)
    preprocess = source.preprocessing() if config.data.preprocess == "auto" else config.data.preprocess
    data_config = replace(config.data, preprocess=preprocess)
    raw = data.raw_splits(data_config.labels) if data else None
    dataset = datasets.load(data_config, config.seed, source.image_shape(), raw=raw)
    dataset.check_trainable()
    input_checks.check_labels(config, dataset)
    return data_config, dataset


def _open_journal(
    config: RunConfig,
    directory: Path,
    identity: dict[str, Any],
    tasks: Sequence[BlockTask],
    may_differ: Collection[str],
) -> Journal:
    if config.execution.resume:
        return Journal.resume(directory, identity, may_differ)
    keys = [task.key for task in tasks if task.skip_reason is None]
    if config.execution.run_dir is None:
        directory = _new_folder(directory)
    return Journal.create(directory, identity, keys)


def _announce(
    display: ProgressDisplay, config: RunConfig, dataset: Dataset, journal: Journal, events: Sequence[str]
) -> None:
    labels = "" if dataset.labelled else " (no labels: judged by agreement with the teacher)"
    display.phase(f"teacher {config.teacher.teacher}, dataset {dataset.name}{labels}; run directory {journal.path}")
    for event in events:
        display.phase(event)


def _events_of_seen_images(dataset: Dataset) -> tuple[str, ...]:
    """Return an event for the report if a trained teacher probably knows images on which it is judged."""
    if not dataset.split_off:
        return ()
    splits = " and ".join(dataset.split_off)
    remedy = "Give new ones, or --validation-from test" if dataset.split_off == ("validation",) else "Give new ones"
    return (
        f"the {splits} images were split off the training images: a teacher that was trained on them looks better "
        f"there than on new images, and its student worse beside it. {remedy}",
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
def _data_for_workers(config: DataConfig, data: Data | None, journal: Journal) -> Iterator[DataConfig]:
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


def _stored_teacher(journal: Journal, teacher: keras.Model, digest: str) -> keras.Model:
    """Return the teacher that the run directory holds; write `teacher` into it if it holds none or a damaged one.

    Tasks and results are keyed by the layer names of the first process, which a model that was built again may lack.
    """
    with contextlib.suppress(BadInputError):
        stored = files.load_own(journal.file("teacher.keras"))
        if model_digest(stored) == digest:
            return stored
    files.save_model(journal, "teacher.keras", teacher)
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
