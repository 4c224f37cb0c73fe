"""What memory a group takes to train, predicted from shapes: how much of it fits is known before anything is lost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras

from pbd import blocks, devices, initialisation, training
from pbd.errors import UsageError
from pbd.records import LayerTask

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
OPTIMISER_COPIES = 5
"""Of a block's weights: themselves, their gradient, Adam's two moments, and the best so far."""


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
    """Bytes that a worker holds before it trains anything."""
    layers: Mapping[str, LayerMemory]
    free: int | None = None
    """Bytes that it may take besides; `None` where that is not known."""

    def room(self, limit: float | None, tasks: Sequence[LayerTask], batch_size: int) -> "Room":
        """Return what decides whether a group fits: this limit, in gigabytes, or what is free.

        Raises:
            UsageError: one of the tasks does not fit into the limit even alone.
        """
        if limit is None:
            return Room(self, math.inf if self.free is None else self.base + COUNTED_ON * self.free)
        largest = max(tasks, key=lambda task: self.peak([task]))
        needed = self.peak([largest]) / GIGABYTE
        if needed > limit:
            raise UsageError(
                f"memory_limit must leave room for every layer alone. Received: {limit:g} GB, but {largest.layer_name} "
                f"is predicted to take {needed:.2f} GB. Give more, or a --batch-size below {batch_size}."
            )
        return Room(self, limit * GIGABYTE)

    def peak(self, tasks: Sequence[LayerTask], share: float = 1.0) -> int:
        """Return the bytes that a group of these tasks takes, what was held before included.

        Args:
            tasks: of the group.
            share: the part of each batch, and of first weights, that is this worker's.
        """
        parts = [self.layers[task.layer_name] for task in tasks]
        shown, moments = (sum(getattr(part, name) for part in parts) for name in ("shown", "moment"))
        weights = sum(part.weights for part in parts)
        largest = max((part.moment for part in parts), default=0)
        gathering = share * (GATHERED_COPIES * shown + moments) if moments else 0
        fitting = share * moments + 2 * FITTED_COPIES * largest
        learning = share * (shown + sum(part.learning for part in parts))
        return self.base + OVERHEAD + weights + math.ceil(max(gathering, fitting, learning))


@dataclass(frozen=True)
class Room:
    """Decides which groups fit into a worker's memory."""

    footprint: Footprint
    limit: float
    """In bytes."""

    @property
    def in_words(self) -> str:
        return f"{self.limit / GIGABYTE:.1f} GB"

    def fits(self, tasks: Sequence[LayerTask], share: float = 1.0) -> bool:
        """Return whether a group of these tasks does; see `Footprint.peak`."""
        return self.footprint.peak(tasks, share) <= self.limit


def footprint(context: training.TrainingContext, tasks: tuple[LayerTask, ...]) -> Footprint:
    """Return what predicts the memory of this run's groups; called where a worker trains, before it does."""
    training.load_teacher(context.teacher_path, context.session)
    dataset = training.load_dataset(context.data, context.seed, context.image_shape, context.session)
    gathers = initialisation.gathers(context.block, context.block_init)
    layers = {task.layer_name: _layer_memory(task, context.block, dataset.batch_size, gathers) for task in tasks}
    return Footprint(devices.memory_in_use(), layers, devices.free_memory())


def _layer_memory(task: LayerTask, block: str, batch_size: int, gathers: bool) -> LayerMemory:
    built = blocks.build_block(block, task, seed=0)
    made = [layer.output.shape[1:] for layer in built.layers if not isinstance(layer, keras.layers.InputLayer)]
    patch = math.prod(task.kernel_size) * task.input_shape[-1]
    return LayerMemory(
        shown=VALUE * batch_size * (math.prod(task.input_shape) + math.prod(task.output_shape)),
        learning=VALUE * batch_size * sum(map(math.prod, made)),
        weights=OPTIMISER_COPIES * VALUE * built.count_params(),
        moment=VALUE * patch**2 if gathers else 0,
    )
