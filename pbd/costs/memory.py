"""What memory a group takes to train, predicted from shapes: how much of it fits is known before anything is lost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import keras

from pbd import blocks
from pbd.blocks import initialisation
from pbd.blockwise import scoring
from pbd.blockwise.context import TrainingContext, load
from pbd.errors import UsageError
from pbd.networks import variants
from pbd.records import BlockTask, TaskGroup
from pbd.system import devices, memory

GIGABYTE = 1e9
COUNTED_ON = 0.8
"""Of what is free, the share that a worker may count on; others need some, too."""
OVERHEAD = 128 * 2**20
"""Bytes of a group's graphs and of what the backend keeps aside."""
VALUE = 4
"""Bytes of a float32."""
GATHERED_COPIES = 3
"""Of a batch's inputs and outputs while statistics are gathered: as tensors, as arrays, and on the way."""
FITTED_COPIES = 8
"""Of a layer's second moment while first weights are fitted, in float64."""
SCORED_COPIES = 3
"""Of the largest stack of variants while blocks are scored: what a layer reads, what it gives, and what comes of it."""
FOLDED_COPIES = 2
"""Of the teacher's weights while blocks are scored."""
OPTIMISER_COPIES = 9
"""Of a block's weights: themselves, their gradient apart and in a row, Adam's two moments before and after a step, the
change, and the best so far."""


@dataclass(frozen=True)
class LayerMemory:
    """What one layer's block adds to a group, in bytes."""

    shown: int
    """The layer's input and output on a batch."""
    learning: int
    """What the block computes of them in a training step."""
    weights: int
    """The block's weights and what the optimiser keeps of them."""
    moment: int
    """The second moment of what the layer sees; 0 where none is gathered."""


@dataclass(frozen=True)
class Footprint:
    """Predicts the most memory that a worker holds while it trains a group."""

    base: int
    """Bytes that a worker holds whatever it trains."""
    layers: Mapping[str, LayerMemory]
    free: int | None = None
    """Bytes that are free on its host; `None` where that is not known."""
    neighbours: int = 1
    """How many workers share what is free, itself included; the others may not have loaded anything yet."""
    batch_size: int = 1
    """Images in a batch."""
    variant: int = 1
    """Bytes of one image in one variant of the network, in the layer whose stack of all variants is largest."""
    most_scored: int = scoring.ON_AN_ACCELERATOR
    """Bytes that such a stack may have: as many images are scored at once, but at least one."""

    def budget(self, limit: float | None) -> "MemoryBudget":
        """Return what decides whether a group fits: this limit, in gigabytes, or what is free."""
        if limit is not None:
            return MemoryBudget(self, limit * GIGABYTE, given=True)
        return MemoryBudget(
            self, math.inf if self.free is None else COUNTED_ON * (self.base + self.free) / self.neighbours
        )

    def peak(self, tasks: Sequence[BlockTask], collective: int = 1) -> int:
        """Return the bytes that a group of these tasks takes, what was held before included.

        Args:
            tasks: of the group.
            collective: how many workers train it together; each initialises its part of the blocks and then sees its
                part of every batch.
        """
        parts = [self.layers[task.layer.name] for task in tasks]
        beginning = max(
            (_beginning(parts[member::collective]) for member in range(min(collective, len(parts)))), default=0
        )
        learning = sum(part.shown + part.learning for part in parts)
        stack = self.variant * (1 + len(parts))
        scored = SCORED_COPIES * stack * min(self.batch_size, scoring.images_at_once(stack, self.most_scored))
        phases = max(beginning, math.ceil(learning / collective), scored)
        return self.base + OVERHEAD + sum(part.weights for part in parts) + phases


def _beginning(parts: Sequence[LayerMemory]) -> int:
    """Return the bytes that first weights of these blocks take while statistics are gathered, or one is fitted."""
    moments, largest = sum(part.moment for part in parts), max(part.moment for part in parts)
    gathering = GATHERED_COPIES * sum(part.shown for part in parts) if moments else 0
    return moments + max(gathering, 2 * FITTED_COPIES * largest)


@dataclass(frozen=True)
class MemoryBudget:
    """Decides which groups fit into a worker's memory."""

    footprint: Footprint
    limit: float
    """In bytes."""
    given: bool = False
    """Whether it was asked for; what only happens to be free refuses nothing."""

    @property
    def describe(self) -> str:
        return f"{self.limit / GIGABYTE:.1f} GB"

    def fits(self, tasks: Sequence[BlockTask], collective: int = 1) -> bool:
        """Return whether a group of these tasks does; see `Footprint.peak`."""
        return self.footprint.peak(tasks, collective) <= self.limit

    def check(self, groups: Iterable[TaskGroup], collective: int, batch_size: int) -> None:
        """Refuse groups, cut as far as can be, that do not fit into the limit that was asked for.

        Raises:
            UsageError: one does not.
        """
        for group in groups:
            if self.given and not self.fits(group.tasks, collective):
                needed = self.footprint.peak(group.tasks, collective) / GIGABYTE
                raise UsageError(
                    "memory_limit must leave room for every layer alone. "
                    f"Received: {self.limit / GIGABYTE:g} GB, but {group.layer_names[0]} is predicted to take "
                    f"{needed:.2f} GB. Give more, or a --batch-size below {batch_size}."
                )


def footprint(context: TrainingContext, tasks: tuple[BlockTask, ...]) -> Footprint:
    """Return what predicts the memory of this run's groups; called where a worker trains, before it does."""
    teacher, dataset = load(context)
    layers = {task.layer.name: _layer_memory(task, context, dataset.batch_size) for task in tasks}
    base = memory.memory_in_use() + FOLDED_COPIES * VALUE * teacher.count_params()
    return Footprint(
        base,
        layers,
        free=memory.free_memory(),
        neighbours=devices.local_workers(),
        batch_size=dataset.batch_size,
        variant=variants.bytes_per_image(teacher, list(layers)) // (1 + len(layers)),
        most_scored=scoring.most_bytes(),
    )


def _layer_memory(task: BlockTask, context: TrainingContext, batch_size: int) -> LayerMemory:
    design = context.designs[task.design]
    needs_inputs, _ = initialisation.statistics_needed(design, context.block_init)
    built = blocks.build_block(design, task.layer, seed=0)
    made = [layer.output.shape[1:] for layer in built.layers if not isinstance(layer, keras.layers.InputLayer)]
    patch = math.prod(task.layer.kernel_size) * task.layer.input_shape[-1]
    return LayerMemory(
        shown=VALUE * batch_size * (math.prod(task.layer.input_shape) + math.prod(task.layer.output_shape)),
        learning=VALUE * batch_size * sum(map(math.prod, made)),
        weights=OPTIMISER_COPIES * VALUE * built.count_params(),
        moment=VALUE * patch**2 if needs_inputs else 0,
    )
