"""The context of a step: the first network, the images, the workers of the session, and the step's folder."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from pbd import blocks
from pbd.blockwise.context import TrainingContext
from pbd.config import DistillationConfig, RunConfig, StudentConfig, TrainingConfig
from pbd.data import Dataset
from pbd.deploy.int8.fake_quantization import FakeQuantization
from pbd.deploy.targets import Target
from pbd.executors.base import Executor
from pbd.learning.metrics import Metrics
from pbd.networks import files
from pbd.networks.digest import model_digest
from pbd.pipeline import remote_tasks
from pbd.pipeline.workers import WorkerPool
from pbd.progress import ProgressDisplay
from pbd.records import BlockResult, BlockTask
from pbd.run_dir.journal import Journal
from pbd.student import builder
from pbd.student.adaptation import Adapted
from pbd.student.checkpoints import FineTuneState
from pbd.system import random_state


@dataclass(frozen=True)
class Context:
    """What a step can use."""

    teacher: keras.Model
    """The first network of the recipe; flat, in float32."""
    teacher_path: Path
    """Its file in the run directory."""
    dataset: Dataset
    """The images of the recipe."""
    config: RunConfig
    """The settings of the recipe, with the settings of the data with which every worker loads the same images; its
    `fine_tune_keep` is best or last."""
    target: Target
    """The target in which the networks of the recipe are measured first, in float32."""
    journal: Journal
    """The folder of the step, which survives if the recipe is interrupted."""
    executor: Executor
    """The workers."""
    display: ProgressDisplay
    """Shows phases and progress."""
    seed: int
    """Seed of the random numbers of the step; it differs from step to step."""
    session: str
    """Names the run of the recipe: a worker loads its images once."""
    keeps_zeros: bool = False
    """Whether a step before has set weights to zero that have to stay zero."""

    def evaluate(self, model: keras.Model, split: str = "validation", teacher: keras.Model | None = None) -> Metrics:
        """Return the quality of a network compared with a teacher (default: the first network), on all workers."""
        with self.file_of(teacher) as other:
            is_teacher = model is (self.teacher if teacher is None else teacher)
            with contextlib.nullcontext(other) if is_teacher else self._file(model) as path:
                return self._pool(other).evaluate([path], split)[0]

    def fine_tune(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics | None = None,
        teacher: keras.Model | None = None,
        first_epoch: int = 0,
        distillation: DistillationConfig | None = None,
        trainable: Collection[str] | None = None,
        quantization: FakeQuantization | None = None,
    ) -> FineTuneState:
        """Train a network on all workers, and leave it with the weights of its best epoch, or of its last.

        If the recipe was interrupted, training goes on after the last epoch that was complete, provided that the step
        calls this again with the same weights and settings.

        Args:
            model: flat; which of its layers are trainable does not change.
            settings: number of epochs, loss, learning rate, mixup, the scope, and `fine_tune_keep`: with auto, that of
                the recipe decides between the best and the last epoch.
            initial: its validation metrics, if they are known.
            teacher: the network whose logits it learns; by default the first one of the recipe.
            first_epoch: the epoch of the data with which to start.
            distillation: what it learns from besides logits and labels, and how the learning rate rises.
            trainable: names of the layers to train, in place of the scope; all others are frozen.
            quantization: if given, a copy of the network with this fake quantisation is trained, without labels. The
                network is left as it is, and the best weights of the state are those of the copy.
        """
        initial = initial or self.evaluate(model, teacher=teacher)
        with self.file_of(teacher) as path:
            learns = trainable is None or any(layer.weights for layer in model.layers if layer.name in trainable)
            if settings.fine_tune_epochs == 0 or not learns:
                return FineTuneState(initial, settings.fine_tune_learning_rate, best_weights=model.get_weights())
            settings = replace(settings, keep_zeros=settings.keep_zeros or self.keeps_zeros)
            if settings.fine_tune_keep == "auto":
                settings = replace(settings, fine_tune_keep=self.config.student.fine_tune_keep)
            with _trainable(model, settings.fine_tune_scope, trainable):
                start = model_digest(model)
                return self._pool(path).fine_tune(
                    model, settings, initial, first_epoch, distillation, start, quantization
                )

    def adapt(self, student: keras.Model, teacher: keras.Model, ends: Mapping[str, str]) -> Adapted:
        """Re-estimate batch statistics and refit convolutions in place, on all workers (see `adaptation.adapt`)."""
        with self.file_of(teacher) as path:
            return self._pool(path).adapt(student, ends)

    def measure(self, model: keras.Model, measure: remote_tasks.Measure) -> Any:
        """Return what a picklable function of a network, the first one and the images returns, on all workers."""
        return self._pool(self.teacher_path).measure(model, measure)

    def train_blocks(
        self, model: keras.Model, tasks: Sequence[BlockTask], training: TrainingConfig, block_init: str
    ) -> list[BlockResult]:
        """Train a block for each task on the feature maps of a network; its layers stay as they are.

        Blocks are trained together as far as the memory of a worker allows. All workers train the same blocks, each on
        its part of every batch, if the designs allow it; else one worker does. Blocks that the folder of the step
        already holds are not trained again.

        Args:
            model: the teacher of the blocks; flat, in float32.
            tasks: the tasks of its layers, in graph order; in a step, each is trained once.
            training: number of epochs and learning rate; without epochs, blocks keep their initial weights.
            block_init: see `BlockConfig`.

        Raises:
            UsageError: a block does not fit into the memory limit of the settings.
        """
        with self._block_pool(model, tasks, training, block_init) as pool:
            groups = pool.groups(tasks, self.config.execution.memory_limit)
            if len(groups) > 1:
                self.display.phase(f"{len(groups)} groups of blocks, each within the memory of a worker")
            return [result for group in groups for result in pool.train_blocks(group)]

    def check_memory(self, model: keras.Model, tasks: Sequence[BlockTask], block_init: str) -> None:
        """Check that `train_blocks` can train each block within the memory limit of the settings, if there is one.

        Raises:
            UsageError: it cannot.
        """
        if self.config.execution.memory_limit is not None:
            with self._block_pool(model, tasks, TrainingConfig(), block_init) as pool:
                pool.groups(tasks, self.config.execution.memory_limit)

    def forget_checkpoints(self) -> None:
        """Delete the checkpoints of fine-tuning, once the step is complete."""
        self.journal.remove_folder(remote_tasks.CHECKPOINTS)

    def with_seed(self, seed: int) -> "Context":
        """Return the context with another seed for initial weights, order and augmentation; the splits stay."""
        split_seed = self.config.data.seed_of_splits(self.config.seed)
        config = self.config.replace(seed=seed, split_seed=split_seed)
        return replace(self, seed=seed, config=config, dataset=replace(self.dataset, seed=seed))

    def for_new_network(self) -> "Context":
        """Return the context for the training of another network than that before the step, or of new layers alone.

        Their zeros are no weights that a step before has pruned, and are trained.
        """
        return replace(self, keeps_zeros=False)

    def seeded(self) -> None:
        """Start the random numbers of Keras, such as those of initial weights, with the seed of the step."""
        random_state.seed(self.seed)

    def for_workers(self, teacher_path: Path) -> TrainingContext:
        """Return what workers need to load the images and a teacher, that in a file of the run directory."""
        return TrainingContext(
            teacher_path=str(teacher_path),
            data=self.config.data,
            image_shape=self.dataset.image_shape,
            training=TrainingConfig(precision=self.config.training.precision),
            designs={},
            block_init=self.config.blocks.block_init,
            seed=self.config.seed,
            journal=self.journal,
            session=self.session,
        )

    @contextlib.contextmanager
    def file_of(self, teacher: keras.Model | None) -> Iterator[Path]:
        """Yield the path of a file of a network, for workers to read; the first network (`None`) has one anyway."""
        if teacher is None or teacher is self.teacher:
            yield self.teacher_path
        else:
            with self._file(teacher, f"teacher-{model_digest(teacher)[:16]}.keras") as path:
                yield path

    @contextlib.contextmanager
    def _block_pool(
        self, model: keras.Model, tasks: Sequence[BlockTask], training: TrainingConfig, block_init: str
    ) -> Iterator[WorkerPool]:
        """Yield the workers for blocks; see `train_blocks`."""
        designs = {task.design: blocks.get(task.design) for task in tasks}
        with self.file_of(model) as path:
            training = replace(training, precision=self.config.training.precision)
            context = replace(self.for_workers(path), training=training, designs=designs, block_init=block_init)
            yield WorkerPool(self.executor, context, self.display.update)

    def _pool(self, teacher_path: Path) -> WorkerPool:
        return WorkerPool(self.executor, self.for_workers(teacher_path), self.display.update)

    @contextlib.contextmanager
    def _file(self, model: keras.Model, name: str = "evaluated.keras") -> Iterator[Path]:
        """Yield the path of a file of the network, which is deleted at the end of the block."""
        path = files.save_model(self.journal, name, model)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _trainable(model: keras.Model, scope: str, names: Collection[str] | None) -> Iterator[None]:
    """Make the layers of a scope trainable until the end of the block; in its place, those of these names."""
    before = {layer.name: layer.trainable for layer in model.layers}
    if names is None:
        builder.set_trainable(model, {}, scope)
    else:
        for layer in model.layers:
            layer.trainable = layer.name in names
    try:
        yield
    finally:
        for layer in model.layers:
            layer.trainable = before[layer.name]
