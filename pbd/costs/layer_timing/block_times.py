"""The times that a layer's block adds to a group, less the baseline of a block that computes next to nothing."""

import dataclasses
import time
from dataclasses import dataclass

import keras

from pbd import blocks
from pbd.blocks import initialisation
from pbd.costs.layer_timing.block_probe import BaselineTimes, BlockProbe
from pbd.costs.layer_timing.setup import Setup
from pbd.costs.layer_timing.step_time import StepTime, seconds, time_step
from pbd.records import BlockTask


@dataclass(frozen=True)
class BlockTimes:
    """The times of one kind of block, in seconds."""

    macs: int
    """Multiply-accumulates of the block, per image."""
    step: StepTime
    check: StepTime
    target_s: float
    gather_s: float
    start_s: float
    """Building the block and computing its initial weights."""

    def scaled_to(self, macs: int) -> "BlockTimes":
        """Return the times for a block of so many MACs: times per batch are proportional to them, tracing is not."""
        factor = macs / self.macs if self.macs else 1.0
        return dataclasses.replace(
            self,
            macs=macs,
            step=StepTime(factor * self.step.typical_s, self.step.once_s),
            check=StepTime(factor * self.check.typical_s, self.check.once_s),
            target_s=factor * self.target_s,
            gather_s=factor * self.gather_s,
        )


def block_times(task: BlockTask, setup: Setup, teacher: keras.Model, baseline: BaselineTimes) -> BlockTimes:
    """Time the block of a layer, without the teacher's forward pass."""
    layer = task.layer
    started = time.perf_counter()
    block = blocks.build_block(setup.designs[task.design], layer, seed=0)
    build_s = time.perf_counter() - started
    probe = BlockProbe.of(task.key, block, layer.input_shape, layer.output_shape, setup.dataset.batch_size)
    # A block without trainable variables is not trained.
    step = probe.step().minus(baseline.step) if block.trainable_variables else StepTime(0.0, 0.0)
    check = probe.check().minus(baseline.check)
    gather_s, fit_s = _initialisation_s(probe, task, block, setup, teacher)
    return BlockTimes(task.macs, step, check, probe.target_s(), gather_s, build_s + fit_s)


def _initialisation_s(
    probe: BlockProbe, task: BlockTask, block: keras.Model, setup: Setup, teacher: keras.Model
) -> tuple[float, float]:
    """Return the seconds for gathering the statistics of a batch, and for computing initial weights from them."""
    name, images = task.layer.name, [probe.batch]
    needed = initialisation.Needs.of(setup.designs[task.design], setup.block_init)

    def gather() -> None:
        statistics = {name: initialisation.Statistics.empty(task.layer, 0)}
        initialisation.gather(statistics, probe.prefix, images, {name: needed})

    gather_s = time_step(gather).typical_s if needed else 0.0
    total_s = seconds(
        lambda: initialisation.initialise(
            {task.key: block}, [task], setup.designs, teacher, probe.prefix, images, setup.block_init, seed=0
        )
    )
    return gather_s, max(0.0, total_s - gather_s)
