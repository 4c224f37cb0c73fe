"""What a layer's block adds to a group, beyond what a block that computes nothing takes."""

import time
from dataclasses import dataclass

import keras

from pbd import blocks
from pbd.blocks import initialisation
from pbd.costs.layer_timing.block_probe import BlockProbe
from pbd.costs.layer_timing.setup import Setup
from pbd.costs.layer_timing.step_time import StepTime, seconds, time_step
from pbd.records import BlockTask


@dataclass(frozen=True)
class BlockTimes:
    """What blocks of one kind take, in seconds."""

    step: StepTime
    check: StepTime
    target_s: float
    gather_s: float
    start_s: float
    """Building and first weights."""


def block_times(
    task: BlockTask, setup: Setup, teacher: keras.Model, idle_step: StepTime, idle_check: StepTime
) -> BlockTimes:
    """Time what the layer's block adds to a group, beyond what a block that computes nothing takes."""
    started = time.perf_counter()
    block = blocks.build_block(setup.designs[task.design], task.layer, seed=0)
    built_s = time.perf_counter() - started
    alone = BlockProbe.of(
        task.layer.name, block, task.layer.input_shape, task.layer.output_shape, setup.dataset.batch_size
    )
    step, check, target_s = alone.step.minus(idle_step), alone.check.minus(idle_check), alone.target_s
    gather_s, fit_s = _first_weights_s(alone, task, block, setup, teacher)
    return BlockTimes(step, check, target_s, gather_s, built_s + fit_s)


def _first_weights_s(
    alone: BlockProbe, task: BlockTask, block: keras.Model, setup: Setup, teacher: keras.Model
) -> tuple[float, float]:
    """Return what the statistics of a batch take, and what the first weights take once these are there."""
    built, images = {task.layer.name: block}, [alone.batch]
    needed = initialisation.statistics_needed(setup.designs[task.design], setup.block_init)

    def gather() -> None:
        statistics = {task.layer.name: initialisation.Statistics.empty(task.layer, 0)}
        initialisation.gather(statistics, alone.prefix, images, {task.layer.name: needed})

    gather_s = time_step(gather).typical_s if any(needed) else 0.0
    whole_s = seconds(
        lambda: initialisation.initialise(
            built, [task], setup.designs, teacher, alone.prefix, images, setup.block_init, seed=0
        )
    )
    return gather_s, max(0.0, whole_s - gather_s)
