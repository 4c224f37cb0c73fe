"""Each layer's costs, from what its block and the teacher's prefixes were measured to take."""

import json

from pbd.costs.layer_timing.block_probe import idle_step_times
from pbd.costs.layer_timing.block_times import BlockTimes, block_times
from pbd.costs.layer_timing.prefix_times import PREFIX_PASSES, PrefixTimes, prefix_times
from pbd.costs.layer_timing.setup import Setup
from pbd.networks import graph
from pbd.records import BlockTask
from pbd.scheduling.cost_table import CostTable, LayerTimes
from pbd.system import devices, random_state

BLOCK_TRACES = 3
"""How often a group traces a block's forward: checks, its error, its swapped scores."""


def calibrate(setup: Setup) -> CostTable:
    """Return a table measured here and now, with the very steps that training takes.

    Blocks with equal shapes are timed once, the teacher's prefix at a few depths. Nothing that a run's randomness
    hangs on is touched.
    """
    with random_state.preserved():
        return _measure(setup)


def _measure(setup: Setup) -> CostTable:
    teacher = graph.flatten(setup.teacher)  # a copy: training a block freezes the layers of its prefix
    idle_step_times(setup.dataset.batch_size)  # pays for what a process pays once
    idle = idle_step_times(setup.dataset.batch_size)
    prefixes = prefix_times(teacher, setup, *idle)
    kinds = {_kind(task): task for task in setup.tasks}
    times = {kind: block_times(task, setup, teacher, *idle) for kind, task in kinds.items()}
    layers = {task.layer.name: _layer_times(setup, prefixes, task, times[_kind(task)]) for task in setup.tasks}
    device = devices.describe()
    return CostTable(setup.conditions, device, f"calibrated on {device}", layers)


def _layer_times(setup: Setup, prefixes: PrefixTimes, task: BlockTask, own: BlockTimes) -> LayerTimes:
    prefix = prefixes.upto(task)
    suffix = prefixes.whole.minus(prefix)
    tracing_s = own.step.once_s + BLOCK_TRACES * own.check.once_s
    return LayerTimes(
        prefix_s=prefix.typical_s,
        step_s=own.step.typical_s,
        check_s=own.check.typical_s,
        suffix_s=prefixes.folded * suffix.typical_s,
        target_s=own.target_s,
        gather_s=own.gather_s,
        block_once_s=own.start_s + tracing_s,
        group_once_s=(1 + PREFIX_PASSES) * prefix.once_s + prefixes.whole.once_s + prefixes.trace_s,
        epoch_s=prefixes.epoch_s,
        load_s=setup.load_s,
    )


def _kind(task: BlockTask) -> tuple[object, ...]:
    """Return what two layers must have in common for their blocks to take the same time."""
    shapes = (
        task.layer.input_shape,
        task.layer.output_shape,
        task.layer.kernel_size,
        task.layer.strides,
        task.layer.dilation_rate,
    )
    return (*shapes, task.layer.padding, task.layer.use_bias, json.dumps(task.layer.activation, sort_keys=True))
