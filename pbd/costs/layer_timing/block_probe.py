"""A block's steps alone, without a teacher in front of it, and those of one that costs next to nothing."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.blockwise.distiller import GroupDistiller
from pbd.costs.layer_timing.step_time import StepTime, time_step
from pbd.learning.loop import adam
from pbd.system import devices

PROBE = "probe"


@dataclass(frozen=True)
class BlockProbe:
    """A block that learns from tensors at hand, without a teacher in front of it."""

    prefix: keras.Model
    distiller: GroupDistiller
    batch: list[Any]
    """The block's inputs and its targets."""

    @classmethod
    def of(
        cls, name: str, block: keras.Model, input_shape: tuple[int, ...], output_shape: tuple[int, ...], images: int
    ) -> "BlockProbe":
        ends = [keras.Input(input_shape), keras.Input(output_shape)]
        prefix = keras.Model(ends, {name: ends})
        draws = np.random.default_rng(0)
        shapes = [(images, *shape) for shape in (input_shape, output_shape)]
        batch = [keras.ops.convert_to_tensor(draws.standard_normal(shape, np.float32)) for shape in shapes]
        return cls(prefix, distiller_of(name, prefix, block), batch)

    @property
    def step(self) -> StepTime:
        """Of training."""
        return time_step(lambda: self.distiller.train_on_batch(self.batch))

    @property
    def check(self) -> StepTime:
        """Of the block's forward and its error."""
        return time_step(lambda: self.distiller.predict_on_batch(self.batch))

    @property
    def target_s(self) -> float:
        """Of the moments that a layer's output is normalised by."""

        def moments() -> None:
            ((_, target),) = self.prefix.predict_on_batch(self.batch).values()
            target = np.asarray(target, np.float64)
            _ = target.sum(), np.square(target).sum()

        return time_step(moments).typical_s


def probe() -> keras.Model:
    """A block that costs next to nothing."""
    inputs = keras.Input((1, 1, 1))
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, name="pbd_probe")(inputs))


def idle_step_times(batch_size: int) -> tuple[StepTime, StepTime]:
    """Return the paces of a step and a check of the probe, without a teacher or data."""
    alone = BlockProbe.of(PROBE, probe(), (1, 1, 1), (1, 1, 1), batch_size)
    return alone.step, alone.check


def distiller_of(name: str, prefix: keras.Model, block: keras.Model) -> GroupDistiller:
    """Return a compiled distiller of one block."""
    distiller = GroupDistiller(prefix, {name: block})
    distiller.compile(adam(1e-3, 1, block.trainable_variables), jit_compile=devices.compiles_with_xla())
    return distiller
