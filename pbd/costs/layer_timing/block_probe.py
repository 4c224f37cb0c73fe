"""The training step of a single block on random tensors, without a teacher, and a baseline block that costs nothing."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.blockwise.distiller import GroupDistiller
from pbd.costs.layer_timing.step_time import StepTime, time_step
from pbd.learning.loop import adam
from pbd.records import BlockKey
from pbd.system import devices

BASELINE = BlockKey("baseline", "baseline")
"""The key of the baseline block."""


@dataclass(frozen=True)
class BlockProbe:
    """A block that is trained on random inputs and targets, without a teacher."""

    prefix: keras.Model
    distiller: GroupDistiller
    batch: list[Any]
    """The block's inputs and its targets."""

    @classmethod
    def of(
        cls,
        key: BlockKey,
        block: keras.Model,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        batch_size: int,
    ) -> "BlockProbe":
        tensors = [keras.Input(input_shape), keras.Input(output_shape)]
        prefix = keras.Model(tensors, {key.layer: tensors})
        rng = np.random.default_rng(0)
        shapes = [(batch_size, *shape) for shape in (input_shape, output_shape)]
        batch = [keras.ops.convert_to_tensor(rng.standard_normal(shape, np.float32)) for shape in shapes]
        return cls(prefix, compile_distiller(key, prefix, block), batch)

    def step(self) -> StepTime:
        """Time a training step."""
        return time_step(lambda: self.distiller.train_on_batch(self.batch))

    def check(self) -> StepTime:
        """Time the forward pass of the block and its error."""
        return time_step(lambda: self.distiller.predict_on_batch(self.batch))

    def target_s(self) -> float:
        """Return the seconds for the moments of the layer's output, with which the block's error is normalised."""

        def moments() -> None:
            ((_, target),) = self.prefix.predict_on_batch(self.batch).values()
            target = np.asarray(target, np.float64)
            _ = target.sum(), np.square(target).sum()

        return time_step(moments).typical_s


@dataclass(frozen=True)
class BaselineTimes:
    """The times of a group whose block computes next to nothing: the fixed cost of a step and of tracing."""

    step: StepTime
    check: StepTime


def baseline_block() -> keras.Model:
    """Return a block with a single multiply-accumulate per image."""
    inputs = keras.Input((1, 1, 1))
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, name="pbd_baseline")(inputs))


def baseline_times(batch_size: int) -> BaselineTimes:
    """Time the baseline block without a teacher or data."""
    probe = BlockProbe.of(BASELINE, baseline_block(), (1, 1, 1), (1, 1, 1), batch_size)
    return BaselineTimes(probe.step(), probe.check())


def compile_distiller(key: BlockKey, prefix: keras.Model, block: keras.Model) -> GroupDistiller:
    """Return a compiled distiller of one block."""
    distiller = GroupDistiller(prefix, {key: block})
    distiller.compile(adam(1e-3, 1, block.trainable_variables), jit_compile=devices.compiles_with_xla())
    return distiller
