"""The settings of a run: frozen dataclasses that check their values. The command line is generated from them:
a field is a flag, the docstring under it is the flag's help, and the docstring of a class is the title of a group.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pbd.config.recipes import recipe_settings
from pbd.config.student import StudentConfig
from pbd.config.values import Section, as_kind, at_least, not_empty, one_of, positive
from pbd.errors import UsageError, unknown_name

EXECUTORS = ("auto", "serial", "mpi", "dask")
SCHEDULERS = ("auto", "round_robin", "wfd", "contiguous", "pull", "work_stealing")
BLOCK_INITS = ("noise", "kernel", "fitted")
PARALLEL = ("auto", "task", "data")
PRECISIONS = ("float32", "bfloat16", "float16")
LIBRARY = (
    "merge",
    "drop",
    "narrow_r75",
    "narrow_r50",
    "narrow_r25",
    "spatial_svd_r50",
    "tucker2_r50",
    "decoupled_r2",
)
"""The designs from which blocks are chosen by default: each is the fastest one for some layer and target."""
DEFAULT_DESIGN = "decoupled_r2"
"""The design that replaces every layer by default, where blocks are accepted by their accuracy."""
DEFAULT_EPOCHS = 3
DEFAULT_MAX_DROP = 0.01
AUGMENTATIONS = ("none", "flip", "crop", "rotate", "flip_crop", "paper")
VALIDATION_SOURCES = ("train", "test")


@dataclass(frozen=True)
class TeacherConfig(Section):
    """The trained network to compress."""

    teacher: str = "digits_cnn"
    """A .keras or .h5 file, digits_cnn, or a keras.applications name (VGG16, ResNet50, …)."""
    teacher_weights: str | None = None
    """Weights for a built-in teacher: a .weights.h5 file, or imagenet. By default it is trained on the dataset."""
    teacher_epochs: int = 6
    """Epochs of training for a built-in teacher without weights; the trained teacher is cached."""

    def check(self) -> None:
        not_empty("teacher", self.teacher)
        at_least("teacher_epochs", self.teacher_epochs, 0)


@dataclass(frozen=True)
class DataConfig(Section):
    """The images to train and evaluate with."""

    dataset: str = "digits"
    """digits, a keras.datasets name (mnist, cifar10, …), an .npz file, a folder of images, or tfds:NAME. Must be given
    for a teacher from a file, unless it classifies the digits."""
    validation_fraction: float = 0.1
    """Fraction of the training images used for validation, if the data has no validation split."""
    validation_from: str = "train"
    """Source of the validation images if the data has no validation split: train (validation_fraction of the training
    images), or test (half of the test images; the other half is the test split). Use test if the teacher was trained
    on all training images: it is more accurate on them than on others, so that the student seems to lose more."""
    train_limit: int | None = None
    """Use only this many training images."""
    batch_size: int = 64
    """Images per training step."""
    preprocess: str = "auto"
    """none, unit (divide by 255), a keras.applications module (vgg16, resnet50, …), or auto (that of a teacher given by
    its keras.applications name; none for other teachers)."""
    augment: str = "none"
    """Augmentation of the training images: none, flip, crop, rotate, flip_crop, or paper (flip, crop and rotate)."""
    image_size: int | None = None
    """Height and width in pixels to which images are resized. By default images from a folder or from tfds get the size
    that the teacher takes, and other images keep theirs."""
    labels: bool = True
    """Use the labels. Without labels, networks are judged by their agreement with the teacher's predictions."""
    split_seed: int | None = None
    """Seed of the validation split, if the data has none (default: the seed of the run). Runs with different seeds and
    one split_seed use the same images for training and for validation."""

    def check(self) -> None:
        not_empty("dataset", self.dataset)
        at_least("split_seed", self.split_seed, 0)
        at_least("batch_size", self.batch_size, 1)
        at_least("train_limit", self.train_limit, 1)
        at_least("image_size", self.image_size, 1)
        if not 0.0 < self.validation_fraction < 1.0:
            raise UsageError(
                f"validation_fraction must lie strictly between 0 and 1. Received: {self.validation_fraction}. "
                "Give 0.1, for example."
            )
        one_of("validation_from", self.validation_from, VALIDATION_SOURCES)
        one_of("augmentation", self.augment, AUGMENTATIONS)

    def seed_of_splits(self, seed: int) -> int:
        """Return `split_seed` or, if it is not set, the seed of the run."""
        return seed if self.split_seed is None else self.split_seed


@dataclass(frozen=True)
class BlockConfig(Section):
    """The layers to replace, and the blocks that replace them."""

    block: tuple[str, ...] = ()
    """Designs of the blocks, from which a budget, sweep or max_drop chooses; without these, each layer gets the
    accepted one that computes least. decoupled_r1, _r2, _r3 (depthwise filters per channel), spatial_svd_rN (N percent
    of the multiply-accumulates), tucker2_rN (N percent of the channels), narrow_rN (N percent of the input channels),
    grouped_gN (N groups), merge or drop (residual blocks), or the paper's two_layer, three_layer, two_layer_skip,
    three_layer_skip. Default: merge, drop, narrow_r75, narrow_r50, narrow_r25, spatial_svd_r50, tucker2_r50 and
    decoupled_r2; decoupled_r2 alone with a threshold of accuracy."""
    block_init: str = "fitted"
    """Initial weights of a block: noise (random, as in the paper), kernel (the teacher's kernel, decoupled), or fitted
    (as kernel, then refined by least squares on a few thousand images). A merged residual block, which has no kernel to
    start from, is fitted with kernel, too."""
    layers: tuple[str, ...] = ()
    """Glob patterns of the layers to replace (default: all); a pattern that begins with ^ excludes layers."""
    include_unprofitable: bool = False
    """Also replace layers whose block needs as many multiply-accumulates, and layers with few input channels."""

    def check(self) -> None:
        one_of("block initialisation", self.block_init, BLOCK_INITS)
        if len(set(self.block)) < len(self.block):
            raise UsageError(
                f"block must be designs, each given once. Received: {' '.join(self.block)}. Leave out the second."
            )

    @property
    def designs(self) -> tuple[str, ...]:
        """The names of the designs; `DEFAULT_DESIGN` if none was chosen."""
        return self.block or (DEFAULT_DESIGN,)


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The training of each block."""

    epochs: int | None = None
    """Passes over the training images for each block; 0 keeps its closed-form weights. Default: 0 where the assembled
    student is refitted (as by default) and blocks do not begin as noise, else 3."""
    learning_rate: float = 0.003
    """Initial learning rate of Adam, with cosine decay to zero. Use 0.01 with --block-init noise."""
    patience: int = 2
    """Stop training a block if its validation error fell by less than 1% in total over this many epochs; 0: never."""
    precision: str = "float32"
    """float32, bfloat16 or float16: what networks compute in while blocks are trained and, except with float16, while
    the student is fine-tuned; weights are kept and scored in float32. Half precision is for processors and GPUs with
    units for it."""

    def check(self) -> None:
        at_least("epochs", self.epochs, 0)
        one_of("precision", self.precision, PRECISIONS)
        at_least("patience", self.patience, 0)
        positive("learning_rate", self.learning_rate)

    @property
    def block_epochs(self) -> int:
        """The passes for each block."""
        return DEFAULT_EPOCHS if self.epochs is None else self.epochs


@dataclass(frozen=True)
class ExecutionConfig(Section):
    """The execution; of these settings, only target can change the student."""

    executor: str = "auto"
    """serial, mpi, dask, or auto (mpi under mpirun with several ranks, else serial)."""
    scheduler: str = "auto"
    """round_robin, wfd (bin packing), contiguous (exact partition), pull (a free worker takes the longest remaining
    group), work_stealing (of Dask), or auto (pull on Dask, else contiguous for groups, else wfd)."""
    parallel: str = "auto"
    """How workers share the block phase: task (each worker trains other layers), data (all workers train all layers,
    each on a part of every batch), or auto (data for per-image designs and at least 300 training steps, else task; task
    on Dask). Fine-tuning is always data parallel; with batch normalisation, each worker gets at least 32 images of a
    batch."""
    workers: int | None = None
    """Number of workers (default: one; the ranks of mpirun; with --executor dask, one per GPU or per core, at most 8;
    with an address, all workers, of which the run waits for one)."""
    dask_address: str | None = None
    """A Dask cluster: tls://HOST:PORT, tcp://HOST:PORT or a scheduler file (default: a cluster on this host)."""
    dask_insecure: bool = False
    """Allow a Dask cluster over the network without TLS: anybody who can connect to it can run code on every worker."""
    costs: str = "auto"
    """Source of the predicted times: a costs.json of another run, calibrate (measure), macs (multiply-accumulates), or
    auto (an earlier calibration; else calibrate, if workers train different layers and it takes at most a tenth of the
    predicted time; else macs)."""
    group: bool = True
    """Train the layers of a worker as one group, which shares the forward pass of the teacher."""
    memory_limit: float | None = None
    """Memory of a worker for training blocks, in gigabytes (1e9 bytes). Groups predicted to need more are split
    (default: 80% of the host's free memory, divided among its workers)."""
    isolate: bool = True
    """Train in a child process of each worker, so that a crash, a hang or the out-of-memory killer costs one of three
    attempts at a group, not the run."""
    stall_limit: float = 300.0
    """Seconds without progress and without computing after which a child process counts as hung. A child that computes
    has ten times as long, because tracing and compiling report no progress."""
    threads_per_worker: int | None = None
    """CPU threads of each worker (default: the cores of the host divided by its workers)."""
    target: str = "auto"
    """Where teacher and student are measured in turn, in float32 and, if the runtime has them, in 8-bit
    integers: openvino, onnx, litert, keras, keras-gpu or saved_model (auto: the first of openvino, onnx, litert,
    keras-gpu and keras that can be used). Blocks are chosen by the latency and the bytes that networks have in this
    target: give openvino-int8, for example, for 8-bit integers. Accuracies they are chosen by are in float32."""
    run_dir: str | None = None
    """Folder for the models, the blocks and the report (default: runs/TEACHER-DATASET-TIME)."""
    resume: bool = False
    """Continue the run in --run-dir: train only what is missing."""
    allow_weak_teacher: bool = False
    """Go on with a teacher that is no better than chance on the validation images. Usually, its labels or its
    preprocessing are not those of the data."""
    verbose: bool = False
    """Show warnings of libraries, and the traceback of an error."""

    def check(self) -> None:
        not_empty("run_dir", self.run_dir)
        one_of("executor", self.executor, EXECUTORS)
        one_of("scheduler", self.scheduler, SCHEDULERS)
        one_of("kind of parallelism", self.parallel, PARALLEL)
        if self.parallel == "data" and (self.scheduler != "auto" or not self.group):
            raise UsageError(
                "parallel data divides batches, not layers, among the workers. Received: "
                f"{'no_group' if not self.group else 'scheduler ' + self.scheduler}. Give --parallel task."
            )
        if self.memory_limit is not None:
            positive("memory_limit", self.memory_limit)
        positive("stall_limit", self.stall_limit)
        at_least("workers", self.workers, 1)
        at_least("threads_per_worker", self.threads_per_worker, 1)
        if self.scheduler == "work_stealing" and self.executor != "dask":
            raise UsageError(
                "work_stealing needs the dask executor. "
                f"Received: executor {self.executor}. Give --executor dask, or use pull."
            )
        if self.dask_address is not None and self.executor != "dask":
            raise UsageError(
                f"dask_address needs the dask executor. Received: executor {self.executor}. Give --executor dask."
            )
        if self.resume and self.run_dir is None:
            raise UsageError(
                "resume needs the run directory to continue. Received: none. Give --run-dir DIR with --resume."
            )


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. `RunConfig.of(epochs=3)` sets fields by name, in whichever section they are."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    blocks: BlockConfig = field(default_factory=BlockConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    seed: int = 0
    """All random numbers derive from it and from layer names; from 0 to 4294967295."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", as_kind("seed", int, self.seed))
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must lie in [0, 4294967295]. Received: {self.seed}. Give another --seed.")
        if not self.data.labels and self.student.needs_labels:
            loss = self.student.fine_tune_loss
            raise UsageError(f"fine_tune_loss {loss} needs labels. Received: no_labels. Give kd_mse or kd_kl.")

    @classmethod
    def of(cls, **settings: Any) -> "RunConfig":
        """Return a config with these fields set and the others at their defaults.

        A `recipe` (quick, standard, patient or paper) stands for other defaults of some fields.

        Raises:
            UsageError: a name is unknown (the message suggests the nearest name) or a value is out of its range.

        Example:
            >>> RunConfig.of(teacher="resnet.keras", epochs=3).training.epochs
            3
        """
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> "RunConfig":
        """Return a copy with these fields changed; see `of`. A recipe changes fields that are at their defaults."""
        recipe = settings.pop("recipe", None)
        if recipe is not None:
            settings = recipe_settings(recipe, self.flat(), RunConfig().flat()) | settings
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seed"}
        owner = {f.name: name for name, part in sections.items() for f in dataclasses.fields(part)}
        changes: dict[str, dict[str, Any]] = {}
        seed = settings.pop("seed", self.seed)
        for name, value in settings.items():
            if name not in owner:
                raise UsageError(unknown_name("setting", name, [*owner, "seed", "recipe"]))
            changes.setdefault(owner[name], {})[name] = value
        parts = {name: dataclasses.replace(sections[name], **fields) for name, fields in changes.items()}
        return dataclasses.replace(self, seed=seed, **parts)

    def resolved(self) -> "RunConfig":
        """Return the settings with those defaults that depend on other settings.

        Without any choice, pbd looks for the fastest student of the library that loses at most `DEFAULT_MAX_DROP`.
        """
        student, block = self.student, self.blocks.block
        if not block and not student.chooses_together and not student.limits_accuracy:
            student = dataclasses.replace(student, max_drop=DEFAULT_MAX_DROP)
        block = block or (LIBRARY if student.chooses_together else (DEFAULT_DESIGN,))
        epochs = self.training.epochs
        if epochs is None:  # refitting leaves most of a block as it is, so that a random one has to be trained
            epochs = 0 if student.refits and self.blocks.block_init != "noise" else DEFAULT_EPOCHS
        return self.replace(block=block, epochs=epochs, max_drop=student.max_drop)

    def flat(self) -> dict[str, Any]:
        """Return every setting by name, without sections, as TOML files have them."""
        settings = dataclasses.asdict(self)
        seed = settings.pop("seed")
        return {name: value for section in settings.values() for name, value in section.items()} | {"seed": seed}

    def block_settings(self) -> dict[str, Any]:
        """Return the settings that trained blocks depend on, besides the teacher and the data set."""
        others = (ExecutionConfig, TeacherConfig, StudentConfig)
        left_out = {"dataset", *(field.name for part in others for field in dataclasses.fields(part))}
        return {name: value for name, value in self.flat().items() if name not in left_out}
