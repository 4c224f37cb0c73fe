"""Predict a group's peak memory from shapes, so that groups are split before a worker runs out of memory."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import keras

from pbd import blocks
from pbd.blocks import initialisation
from pbd.blockwise import scoring
from pbd.blockwise.context import TrainingContext, load
from pbd.errors import UsageError
from pbd.learning.early_stopping import LearningCurve
from pbd.learning.flat_adam import FlatAdam
from pbd.networks import variants
from pbd.records import BlockKey, BlockTask, TaskGroup
from pbd.system import devices, memory

GIGABYTE = 1e9
USABLE_FRACTION = 0.8
"""The fraction of the free memory that workers may use; the rest is for other processes."""
OVERHEAD = 128 * 2**20
"""Bytes of a group's graphs and of the backend's memory pool."""
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class TaskMemory:
    """The memory that one block adds to a group, in bytes."""

    features: int
    """The layer's input and output on a batch."""
    activations: int
    """The activations of the block in a training step."""
    weights: int
    """The block's weights, the optimiser's state, and the best weights so far."""
    moment: int
    """The second moment of the layer's input; 0 if it is not gathered."""


@dataclass(frozen=True)
class Footprint:
    """Predicts the peak memory of a worker that trains a group."""

    base: int
    """Bytes that a worker uses before it trains a group."""
    tasks: Mapping[BlockKey, TaskMemory]
    free: int | None = None
    """Free bytes of its host; `None` if unknown."""
    local_workers: int = 1
    """The number of workers on the host, including this one; the others may not have loaded anything yet."""
    batch_size: int = 1
    """Images in a batch."""
    variant: int = 1
    """Bytes of one image in one variant of the network, in the layer with the largest stack of all variants."""
    most_scored: int = scoring.ON_AN_ACCELERATOR
    """The largest size of such a stack in bytes; it limits the images scored at once, but not below one."""

    def budget(self, limit: float | None) -> "MemoryBudget":
        """Return the memory budget of a worker: this limit in gigabytes, or a share of the free memory."""
        if limit is not None:
            return MemoryBudget(self, limit * GIGABYTE, requested=True)
        return MemoryBudget(
            self, math.inf if self.free is None else USABLE_FRACTION * (self.base + self.free) / self.local_workers
        )

    def of_single_images(self, batch_size: int) -> "Footprint":
        """Return the footprint for batches of one image, from that for batches of `batch_size` images."""
        tasks = {
            key: replace(
                part,
                features=math.ceil(part.features / batch_size),
                activations=math.ceil(part.activations / batch_size),
            )
            for key, part in self.tasks.items()
        }
        return replace(self, tasks=tasks, batch_size=1)

    def peak(self, tasks: Sequence[BlockTask], collective: int = 1) -> int:
        """Return the peak bytes of a worker that trains a group of these tasks, including its memory before.

        Args:
            tasks: The tasks of the group.
            collective: The number of workers in data parallelism. Each initialises the blocks of its part of the
                layers, and then processes its part of every batch.
        """
        parts = [self.tasks[task.key] for task in tasks]
        layers = self._of_layers(tasks)
        initialisation_bytes = max(
            (_initialisation_bytes(layers[member::collective]) for member in range(min(collective, len(layers)))),
            default=0,
        )
        training_bytes = sum(layer.features for layer in layers) + sum(part.activations for part in parts)
        stack = self.variant * (1 + len(parts))
        scoring_bytes = scoring.peak_bytes(stack, self.batch_size, self.most_scored)
        # The phases follow one another, so the largest one counts.
        phases = max(initialisation_bytes, math.ceil(training_bytes / collective), scoring_bytes)
        return self.base + OVERHEAD + sum(part.weights for part in parts) + phases

    def _of_layers(self, tasks: Sequence[BlockTask]) -> list[TaskMemory]:
        """Return the memory of each layer, whose features and moment serve all its blocks."""
        layers: dict[str, TaskMemory] = {}
        for task in tasks:
            part = self.tasks[task.key]
            moment = max(part.moment, layers.get(task.layer.name, part).moment)
            layers[task.layer.name] = replace(part, moment=moment)
        return list(layers.values())


def _initialisation_bytes(layers: Sequence[TaskMemory]) -> int:
    return initialisation.peak_bytes([layer.features for layer in layers], [layer.moment for layer in layers])


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that a worker may use for a group."""

    footprint: Footprint
    limit: float
    """The limit in bytes."""
    requested: bool = False
    """Whether the limit comes from the settings; a limit from the free memory splits groups but raises no error."""

    def describe(self) -> str:
        """Return the limit for a message."""
        return f"{self.limit / GIGABYTE:.1f} GB"

    def fits(self, tasks: Sequence[BlockTask], collective: int = 1) -> bool:
        """Return whether a group of these tasks fits; see `Footprint.peak`."""
        return self.footprint.peak(tasks, collective) <= self.limit

    def check(self, groups: Iterable[TaskGroup], collective: int, batch_size: int) -> None:
        """Check that groups, already cut as far as possible, fit into a limit from the settings.

        Raises:
            UsageError: A group does not fit.
        """
        for group in groups:
            if self.requested and not self.fits(group.tasks, collective):
                needed = math.ceil(100 * self.footprint.peak(group.tasks, collective) / GIGABYTE) / 100
                single = replace(self, footprint=self.footprint.of_single_images(batch_size))
                smaller = f", or a --batch-size below {batch_size}" if single.fits(group.tasks, collective) else ""
                raise UsageError(
                    "memory_limit must be enough for each single layer. "
                    f"Received: {self.limit / GIGABYTE:g} GB, but {group.layer_names[0]} is predicted to need "
                    f"{needed:.2f} GB. Give a higher limit{smaller}."
                )


def footprint(context: TrainingContext, tasks: tuple[BlockTask, ...]) -> Footprint:
    """Return the footprint of this run's tasks; called in a worker, before it trains."""
    teacher, dataset = load(context)
    parts = {task.key: _task_memory(task, context, dataset.batch_size) for task in tasks}
    base = memory.memory_in_use() + scoring.TEACHER_COPIES * FLOAT32_BYTES * teacher.count_params()
    return Footprint(
        base,
        parts,
        free=memory.free_memory(),
        local_workers=devices.local_workers(),
        batch_size=dataset.batch_size,
        variant=variants.bytes_per_image(teacher, parts) // (1 + len(tasks)),
        most_scored=scoring.most_bytes(),
    )


def _task_memory(task: BlockTask, context: TrainingContext, batch_size: int) -> TaskMemory:
    design = context.designs[task.design]
    needs = initialisation.Needs.of(design, context.block_init)
    built = blocks.outline(design, task.layer)
    shapes = [layer.output.shape[1:] for layer in built.layers if not isinstance(layer, keras.layers.InputLayer)]
    copies = 1 + FlatAdam.COPIES + LearningCurve.COPIES
    return TaskMemory(
        features=FLOAT32_BYTES * batch_size * (math.prod(task.layer.input_shape) + math.prod(task.layer.output_shape)),
        activations=FLOAT32_BYTES * batch_size * sum(map(math.prod, shapes)),
        weights=copies * FLOAT32_BYTES * built.count_params(),
        moment=initialisation.moment_bytes(task.layer) if needs.inputs or needs.pairs else 0,
    )
