"""Settings of a run: frozen dataclasses, checked where they are made; the command line is generated from them."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from pbd.errors import UsageError, unknown_name

EXECUTORS = ("auto", "serial", "mpi", "dask")
SCHEDULERS = ("auto", "round_robin", "wfd", "contiguous", "pull", "work_stealing")
BLOCK_INITS = ("noise", "kernel", "fitted")
FINE_TUNE_LOSSES = ("kd_mse", "kd_kl", "cross_entropy", "mixed")
NEED_LABELS = ("cross_entropy", "mixed")
FINE_TUNE_SCOPES = ("blocks", "all", "no_1x1_dense")
PARALLEL = ("auto", "task", "data")
AUGMENTATIONS = ("none", "flip", "crop", "rotate", "flip_crop", "paper")


def _one_of(kind: str, received: str, known: Iterable[str]) -> None:
    if received not in known:
        raise UsageError(unknown_name(kind, received, known))


def _at_least(name: str, received: float | None, least: float) -> None:
    if received is not None and not (math.isfinite(received) and received >= least):
        raise UsageError(f"{name} must be at least {least}. Received: {received}.")


def _positive(name: str, received: float) -> None:
    if not (math.isfinite(received) and received > 0):
        raise UsageError(f"{name} must be positive. Received: {received}.")


def _fraction(name: str, received: float | None) -> None:
    if received is not None and not (0.0 <= received <= 1.0):
        raise UsageError(f"{name} must lie in [0, 1]. Received: {received}. It is a share: 0.05 is 5%.")


def _as_kind(name: str, kind: Any, value: Any) -> Any:
    """Return the value as its field's type where that changes nothing; refuse it otherwise."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if get_origin(kind) is tuple:
        values = (value,) if isinstance(value, str) else value
        if isinstance(values, list | tuple) and all(isinstance(entry, str) for entry in values):
            return tuple(values)
        raise UsageError(f"{name} must be names or patterns. Received: {value!r}.")
    kinds = get_args(kind) or (kind,)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        wanted = " or ".join(one.__name__ for one in kinds if one is not type(None))
        raise UsageError(f"{name} must be of type {wanted}. Received: {value!r}.")
    return value


@dataclass(frozen=True)
class TeacherConfig:
    """The trained network to compress."""

    teacher: str = "digits_cnn"
    """A .keras or .h5 file, digits_cnn, or a keras.applications name (VGG16, ResNet50, …)."""
    teacher_weights: str | None = None
    """Weights for a built-in teacher: a .weights.h5 file, or imagenet; it is trained on the dataset otherwise."""
    teacher_epochs: int = 6
    """Epochs for training a built-in teacher that has no weights; the result is cached."""

    def __post_init__(self) -> None:
        _at_least("teacher_epochs", self.teacher_epochs, 0)


@dataclass(frozen=True)
class DataConfig:
    """The images that the blocks and the student learn from."""

    dataset: str = "digits"
    """digits, a keras.datasets name, an .npz file, a folder of images, or tfds:NAME."""
    validation_fraction: float = 0.1
    """Share of the training images set aside for every choice, unless the data brings a validation split."""
    train_limit: int | None = None
    """Use only this many training images."""
    batch_size: int = 64
    """Images per training step."""
    preprocess: str = "auto"
    """none, unit (divide by 255), a keras.applications module (vgg16, resnet50, …), or auto: what the teacher needs."""
    augment: str = "none"
    """none, flip, crop, rotate, flip_crop, or paper (all three), applied to the training images."""
    image_size: int | None = None
    """Resize images to this many pixels a side; by default a folder's or a tfds set's take the teacher's size."""
    labels: bool = True
    """Use the labels; with --no-labels, or data that has none, the teacher's own answers are the measure."""

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("train_limit", self.train_limit, 1)
        _at_least("image_size", self.image_size, 1)
        if not 0.0 < self.validation_fraction < 1.0:
            raise UsageError(
                f"validation_fraction must lie strictly between 0 and 1. Received: {self.validation_fraction}."
            )
        _one_of("augmentation", self.augment, AUGMENTATIONS)


@dataclass(frozen=True)
class BlockConfig:
    """Which layers are replaced, and by what."""

    block: str = "decoupled_r2"
    """decoupled_r1, _r2, _r3 (depthwise filters per channel), or the paper's two_layer, three_layer, two_layer_skip,
    three_layer_skip."""
    block_init: str = "fitted"
    """A block's first weights: noise (the paper's way), kernel (the teacher's, decoupled), or fitted (and then refined
    by least squares on a few thousand images)."""
    layers: tuple[str, ...] = ()
    """Glob patterns of layer names to replace; a pattern that begins with ^ excludes. All by default."""
    include_unprofitable: bool = False
    """Also replace layers whose block would cost no fewer multiply-accumulates, or that have few input channels."""

    def __post_init__(self) -> None:
        _one_of("block initialisation", self.block_init, BLOCK_INITS)


@dataclass(frozen=True)
class TrainingConfig:
    """How each block is trained."""

    epochs: int = 3
    """Passes over the training images for each block; 0 keeps its first weights (a baseline)."""
    learning_rate: float = 0.003
    """Adam's first learning rate; it falls to zero along a cosine. Blocks that begin from noise want 0.01."""
    patience: int = 2
    """A block stops after this many epochs in which its validation error fell by less than 1%; 0: never."""

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 0)
        _at_least("patience", self.patience, 0)
        _positive("learning_rate", self.learning_rate)


@dataclass(frozen=True)
class StudentConfig:
    """Which blocks are kept, and how the assembled student is tuned."""

    accuracy_threshold: float | None = None
    """Accept a block if the teacher with only it swapped in reaches this validation accuracy (or agreement)."""
    max_accuracy_drop: float | None = None
    """Accept a block if that accuracy is at most this far below the teacher's (default: 0.2)."""
    fine_tune_epochs: int = 8
    """Passes over the training images for the assembled student; 0 leaves it as assembled."""
    fine_tune_scope: str = "all"
    """What is tuned: blocks, all, or no_1x1_dense (all but 1x1 convolutions and dense layers)."""
    fine_tune_learning_rate: float = 0.003
    """Adam's first learning rate for the student; it falls to zero along a cosine."""
    fine_tune_loss: str = "kd_mse"
    """kd_mse (the teacher's logits), kd_kl (its softened outputs), cross_entropy (labels), or mixed (the last two)."""
    temperature: float = 4.0
    """Softens the outputs that kd_kl and mixed compare."""
    distillation_weight: float = 0.9
    """Share of the teacher in mixed; the labels have the rest."""
    target_accuracy_drop: float | None = None
    """Give layers back until the student's validation accuracy (agreement, if no labels) is at most this far below;
    each time, it is made and fine-tuned again."""

    def __post_init__(self) -> None:
        _fraction("accuracy_threshold", self.accuracy_threshold)
        _fraction("max_accuracy_drop", self.max_accuracy_drop)
        if self.accuracy_threshold is not None and self.max_accuracy_drop is not None:
            raise UsageError("give accuracy_threshold or max_accuracy_drop, not both.")
        _at_least("fine_tune_epochs", self.fine_tune_epochs, 0)
        _fraction("target_accuracy_drop", self.target_accuracy_drop)
        _fraction("distillation_weight", self.distillation_weight)
        _one_of("fine-tune scope", self.fine_tune_scope, FINE_TUNE_SCOPES)
        _one_of("fine-tune loss", self.fine_tune_loss, FINE_TUNE_LOSSES)
        _positive("temperature", self.temperature)
        _positive("fine_tune_learning_rate", self.fine_tune_learning_rate)

    def lowest_accuracy(self, teacher_accuracy: float) -> float:
        """Return the validation accuracy (without labels, the agreement) that a block must reach to be accepted."""
        if self.accuracy_threshold is not None:
            return self.accuracy_threshold
        return teacher_accuracy - (0.2 if self.max_accuracy_drop is None else self.max_accuracy_drop)


@dataclass(frozen=True)
class ExecutionConfig:
    """Where and how the work runs; none of it changes the student."""

    executor: str = "auto"
    """serial, mpi, dask, or auto: mpi under mpirun, else serial."""
    scheduler: str = "auto"
    """round_robin, wfd (bin packing), contiguous (exact), pull (whoever comes free takes the longest group left),
    work_stealing (Dask's), or auto: pull on Dask, else contiguous for groups, else wfd."""
    parallel: str = "auto"
    """How workers share the blocks: task (each trains layers of its own), data (all train all layers, each on its part
    of every batch), or auto (task on Dask, else what is predicted to be faster). All fine-tune the student in any case,
    but no more than have 32 images of the batch each if it has batch normalisations."""
    workers: int | None = None
    """Number of workers; under MPI it is the number of ranks, on a Dask cluster how many to wait for."""
    dask_address: str | None = None
    """A Dask cluster: tls://HOST:PORT, tcp://HOST:PORT or a scheduler file; by default one is started here."""
    dask_insecure: bool = False
    """Use a Dask cluster over the network without TLS: whoever reaches it can run code on every worker."""
    costs: str = "auto"
    """Where predicted times come from: a costs.json of another run, calibrate, macs, or auto: calibrated before, else
    calibrate if there are several workers to share the layers among, else macs."""
    group: bool = True
    """Train the layers of a worker in one pass that pays the teacher's forward once."""
    memory_limit: float | None = None
    """Gigabytes (1e9 bytes) that a worker may take while it trains blocks: groups that are predicted to take more are
    cut (default: what the host has free)."""
    isolate: bool = True
    """Train in a child process of each worker: a crash, a hang or the system's memory killer cost one attempt of three,
    and not the run."""
    stall_limit: float = 300.0
    """Seconds for which such a child may neither report nor compute before it counts as lost (seen within twice as
    many); ten times as many if it computes, since tracing and compiling report nothing."""
    threads_per_worker: int | None = None
    """CPU threads of each worker (default: the cores shared out evenly)."""
    run_dir: str | None = None
    """Where everything is written (default: runs/TEACHER-DATASET-TIME)."""
    resume: bool = False
    """Continue the run in run_dir: only what is missing is trained."""
    verbose: bool = False
    """Say more: library warnings, and a traceback where something goes wrong."""

    def __post_init__(self) -> None:
        _one_of("executor", self.executor, EXECUTORS)
        _one_of("scheduler", self.scheduler, SCHEDULERS)
        _one_of("kind of parallelism", self.parallel, PARALLEL)
        if self.parallel == "data" and (self.scheduler != "auto" or not self.group):
            raise UsageError(
                "parallel data has no layers to share out. Received: "
                f"{'no_group' if not self.group else 'scheduler ' + self.scheduler}. Give --parallel task."
            )
        if self.memory_limit is not None:
            _positive("memory_limit", self.memory_limit)
        _positive("stall_limit", self.stall_limit)
        _at_least("workers", self.workers, 1)
        _at_least("threads_per_worker", self.threads_per_worker, 1)
        if self.scheduler == "work_stealing" and self.executor != "dask":
            raise UsageError(
                f"work stealing is Dask's. Received: executor {self.executor}. Give --executor dask, or use pull."
            )
        if self.dask_address is not None and self.executor != "dask":
            raise UsageError(
                f"dask_address needs the dask executor. Received: executor {self.executor}. Give --executor dask."
            )
        if self.resume and self.run_dir is None:
            raise UsageError("resume needs the run directory to continue. Give --run-dir DIR with --resume.")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is told. `RunConfig.of(epochs=3)` sets fields by name, wherever they live."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    blocks: BlockConfig = field(default_factory=BlockConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    seed: int = 0
    """Everything random derives from it and from layer names."""

    def __post_init__(self) -> None:
        loss = self.student.fine_tune_loss
        if not self.data.labels and loss in NEED_LABELS:
            raise UsageError(f"fine_tune_loss {loss} needs labels. Received: no_labels. Give kd_mse or kd_kl.")

    @classmethod
    def of(cls, **settings: Any) -> "RunConfig":
        """Return a config with these fields set, the others at their defaults.

        Raises:
            UsageError: a name is unknown (the nearest one is named) or a value is out of its range.

        Example:
            >>> RunConfig.of(teacher="resnet.keras", epochs=3).training.epochs
            3
        """
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> "RunConfig":
        """Return this config with the fields named in `settings` changed."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seed"}
        owner = {f.name: name for name, part in sections.items() for f in dataclasses.fields(part)}
        changes: dict[str, dict[str, Any]] = {}
        seed = settings.pop("seed", self.seed)
        for name, value in settings.items():
            if name not in owner:
                raise UsageError(unknown_name("setting", name, [*owner, "seed"]))
            kind = get_type_hints(type(sections[owner[name]]))[name]
            changes.setdefault(owner[name], {})[name] = _as_kind(name, kind, value)
        parts = {name: dataclasses.replace(sections[name], **fields) for name, fields in changes.items()}
        return dataclasses.replace(self, seed=seed, **parts)

    def flat(self) -> dict[str, Any]:
        """Return every setting by its own name, as the command line and TOML files spell it."""
        nested: Mapping[str, Any] = dataclasses.asdict(self)
        return {k: v for part in nested.values() if isinstance(part, dict) for k, v in part.items()} | {
            "seed": self.seed
        }

    def student_settings(self) -> dict[str, Any]:
        """Return the settings that decide which student comes out: all but those of the execution."""
        where_it_runs = {f.name for f in dataclasses.fields(ExecutionConfig)}
        return {name: value for name, value in self.flat().items() if name not in where_it_runs}
