"""Everything a run needs before the first block is trained: the teacher, the data, the run directory."""

import contextlib
import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from pbd import blocks, data
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import NEED_LABELS, DataConfig, RunConfig
from pbd.errors import BadInputError, UsageError
from pbd.learning.loop import fit_on_labels
from pbd.networks import files, graph
from pbd.pipeline import teachers
from pbd.progress import ProgressDisplay
from pbd.records import BlockTask
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal, write_atomically

TEACHER_LEARNING_RATE = 0.002


@dataclass(frozen=True)
class Inputs:
    """What the run works on."""

    teacher: keras.Model
    """Flat and functional, with its weights."""
    dataset: data.Dataset
    data_config: DataConfig
    """As given, with `auto` and relative paths resolved; loads the same data in any worker."""
    journal: Journal
    tasks: tuple[BlockTask, ...]
    """Every convolution of the teacher, those to skip included."""


@contextlib.contextmanager
def prepare(config: RunConfig, model: keras.Model | None, display: ProgressDisplay) -> Iterator[Inputs]:
    """Load or train the teacher, load the data, and open the run directory, which is this run's until the end.

    Nothing is written if any of it fails.
    """
    check_design(config)
    directory = _directory(config)
    preprocess = config.data.preprocess
    if preprocess == "auto":
        preprocess = teachers.preprocessing(config.teacher) if model is None else "none"
    if model is not None:
        files.check_known(model)
    else:
        teachers.check(config.teacher)
        if teachers.is_file(config.teacher.teacher):
            model = files.load(config.teacher.teacher)
        elif config.execution.resume:
            with contextlib.suppress(BadInputError):  # if it is damaged, it is made again
                model = files.load(str(directory / "teacher.keras"))  # as it was trained then
    data_config = replace(config.data, preprocess=preprocess)
    dataset = data.load(data_config, config.seed, teachers.wanted_shape(config.teacher, model))
    if model is None:
        model = _built_in(config, _labelled(data_config, dataset), display)
    _check_labels(config, dataset)
    teacher = graph.flatten(model, dataset.image_shape)
    _check_outputs(teacher, dataset)
    wanted = config.blocks
    tasks = enumerate_tasks(teacher, blocks.get(wanted.block), wanted.layers, wanted.include_unprofitable)
    identity = {**config.student_settings(), "teacher_sha256": _digest(teacher), "data_sha256": dataset.digest()}
    if config.execution.resume:
        journal = Journal.resume(directory, identity)
    else:
        journal = Journal.create(directory, identity, [task.key for task in tasks if task.skip_reason is None])
    with lock.held(directory):
        _keep(journal, teacher)
        judged = "" if dataset.labelled else " (no labels: judged by agreement with the teacher)"
        display.phase(f"teacher {config.teacher.teacher}, dataset {dataset.name}{judged}; run directory {directory}")
        reachable = replace(data_config, dataset=data.absolute(data_config.dataset))
        yield Inputs(teacher, dataset, reachable, journal, tasks)


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
    """Write the teacher into the run directory, unless it is there."""
    with contextlib.suppress(BadInputError):
        if _digest(files.load(str(journal.file("teacher.keras")))) == _digest(teacher):
            return
    save_model(journal, "teacher.keras", teacher)


def _labelled(config: DataConfig, dataset: data.Dataset) -> data.Dataset:
    """Return the data with its labels, in the same splits: a built-in teacher is trained on them in any case."""
    if not dataset.labelled and not config.labels:
        with_labels = replace(config, labels=True)
        dataset = data.load(with_labels, dataset.seed, dataset.image_shape, split_by_class=False)
    if not dataset.labelled:
        raise BadInputError(
            f"a built-in teacher is trained on labels. Received: {dataset.name!r}, which has none. "
            "Give a trained model with --teacher FILE."
        )
    return dataset


def _check_outputs(teacher: keras.Model, dataset: data.Dataset) -> None:
    outputs, classes = teacher.output.shape[-1], dataset.num_classes
    if classes is None and outputs < 2:
        raise BadInputError(f"the teacher must have an output for each of two classes or more. Received: {outputs}.")
    if classes is not None and outputs < classes:
        raise BadInputError(
            f"the teacher must have an output for each class. Received: {outputs} outputs for "
            f"{classes} classes of {dataset.name!r}."
        )


def _check_labels(config: RunConfig, dataset: data.Dataset) -> None:
    loss = config.student.fine_tune_loss
    if loss in NEED_LABELS and not dataset.labelled:
        raise BadInputError(
            f"--fine-tune-loss {loss} needs labels. Received: {dataset.name!r}, which has none. Give kd_mse or kd_kl."
        )


def _directory(config: RunConfig) -> Path:
    """Return the run directory; a taken one is refused before any work."""
    if config.execution.run_dir is None:
        name = Path(config.teacher.teacher).stem
        data = Path(config.data.dataset).stem.replace(":", "-")
        return (Path("runs") / f"{name}-{data}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    lock.check(Path(config.execution.run_dir))
    Journal.check(config.execution.run_dir, config.execution.resume)
    return Path(config.execution.run_dir).absolute()


def _built_in(config: RunConfig, dataset: data.Dataset, display: ProgressDisplay) -> keras.Model:
    """Build the named network; train it on the dataset unless all its weights are given or it was trained so before."""
    wanted, choice = config.teacher, config.blocks
    model = teachers.build(wanted, dataset.image_shape, dataset.num_classes, config.seed)
    enumerate_tasks(  # says what is wrong with --layers before the training
        graph.flatten(model, dataset.image_shape), blocks.get(choice.block), choice.layers, choice.include_unprofitable
    )
    new_head = wanted.teacher_weights == "imagenet" and dataset.num_classes != 1000
    if wanted.teacher_epochs == 0 or (wanted.teacher_weights is not None and not new_head):
        return model
    settings = {**vars(wanted), **vars(config.data), "seed": config.seed, "versions": versions()}
    path = teachers.cache_path(wanted, dataset, settings)
    if path.is_file():
        display.phase(f"teacher {wanted.teacher}: trained before, from {path}")
        return files.load(str(path))
    display.phase(f"teacher {wanted.teacher}: training it on {dataset.name}, {wanted.teacher_epochs} epochs")
    fit_on_labels(model, dataset, wanted.teacher_epochs, TEACHER_LEARNING_RATE, display.update, "teacher")
    model = graph.flatten(model)
    try:
        write_atomically(path, model_bytes(model))
    except OSError as error:
        display.phase(f"the trained teacher cannot be kept for the next run: {error}")
    return model


def model_bytes(model: keras.Model) -> bytes:
    """Return the model as the content of a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def save_model(journal: Journal, name: str, model: keras.Model) -> Path:
    """Write the model into the run directory, atomically, and return its path."""
    return journal.write_bytes(name, model_bytes(model))


def _digest(model: keras.Model) -> str:
    """Return a SHA-256 over the model's structure and weights."""
    digest = hashlib.sha256(json.dumps([type(layer).__name__ for layer in model.layers]).encode())
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what the result may depend on; what is not installed is left out."""
    import pbd

    found = {"pbd": pbd.__version__}
    for package in ("keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy", "h5py", "mpi4py", "binpacking"):
        try:
            found[package.removesuffix("-cpu")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
