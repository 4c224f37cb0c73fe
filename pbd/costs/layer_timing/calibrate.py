"""Calibration: the cost of each task from timed steps of its block and of the teacher's prefixes."""

import json
import math
from collections.abc import Hashable, Mapping

import keras

from pbd.blocks import factored
from pbd.costs.layer_timing.block_probe import BaselineTimes, baseline_times
from pbd.costs.layer_timing.block_times import BlockTimes, block_times
from pbd.costs.layer_timing.prefix_times import PREFIX_PASSES, PrefixTimes, prefix_times
from pbd.costs.layer_timing.setup import Setup
from pbd.costs.layer_timing.step_time import Deadline
from pbd.networks import graph
from pbd.records import BlockTask
from pbd.scheduling.cost_table import CostTable, TaskTimes
from pbd.system import devices, random_state

BLOCK_TRACES = 3
"""How often a group traces the forward pass of a block outside training: checks, its error, its swapped scores."""


def calibrate(setup: Setup, time_limit_s: float = math.inf) -> CostTable:
    """Return a table timed on this device with the steps that training runs.

    Blocks of equal shapes are timed once, the teacher's prefix at a few depths. The random state of the process is
    preserved.

    Args:
        setup: The layers, and what they are timed with.
        time_limit_s: After it no further depth or kind of layer is timed: depths are interpolated, and kinds scaled by
            their multiply-accumulates. The timing under way is completed, and one kind of layer is always timed.
    """
    deadline = Deadline.after(time_limit_s)
    with random_state.preserved():
        return _measure(setup, deadline)


def _measure(setup: Setup, deadline: Deadline) -> CostTable:
    teacher = graph.flatten(setup.teacher)  # a copy: training a block freezes the layers of its prefix
    baseline_times(setup.dataset.batch_size)  # the first graph of a process pays for initialising the backend
    baseline = baseline_times(setup.dataset.batch_size)
    prefixes = prefix_times(teacher, setup, baseline, deadline)
    kinds = _kinds(setup)
    timed = _time_kinds(kinds, setup, teacher, baseline, deadline)
    times = {
        task.key: _task_times(setup, prefixes, task, _nearest(timed, task).scaled_to(task.macs))
        for tasks in kinds.values()
        for task in tasks
    }
    device = devices.describe()
    source = f"calibrated on {device}"
    if len(timed) < len(kinds):
        source += f" ({len(timed)} of {len(kinds)} kinds of layer; the others are scaled by multiply-accumulates)"
    return CostTable(setup.conditions, device, source, {key: times[key] for key in setup.keys})


def _kinds(setup: Setup) -> dict[Hashable, list[BlockTask]]:
    """Return the tasks by kind; tasks of one kind take the same time. Kinds with the most work in total come first."""
    kinds: dict[Hashable, list[BlockTask]] = {}
    for task in setup.tasks:
        kinds.setdefault(_kind(task), []).append(task)
    return dict(sorted(kinds.items(), key=lambda item: -sum(task.macs for task in item[1])))


def _time_kinds(
    kinds: Mapping[Hashable, list[BlockTask]],
    setup: Setup,
    teacher: keras.Model,
    baseline: BaselineTimes,
    deadline: Deadline,
) -> dict[Hashable, BlockTimes]:
    """Time one task of each kind until the deadline, and at least one."""
    timed: dict[Hashable, BlockTimes] = {}
    for kind, (task, *_) in kinds.items():
        if timed and deadline.passed():
            break
        timed[kind] = block_times(task, setup, teacher, baseline)
    return timed


def _nearest(timed: Mapping[Hashable, BlockTimes], task: BlockTask) -> BlockTimes:
    """Return the times of the task's kind; if it was not timed, those of the timed kind nearest in MACs."""
    kind = _kind(task)
    return timed[kind] if kind in timed else min(timed.values(), key=lambda times: abs(times.macs - task.macs))


def _task_times(setup: Setup, prefixes: PrefixTimes, task: BlockTask, block: BlockTimes) -> TaskTimes:
    prefix = prefixes.upto(task)
    suffix = prefixes.whole.minus(prefix)
    tracing_s = block.step.once_s + BLOCK_TRACES * block.check.once_s
    return TaskTimes(
        prefix_s=prefix.typical_s,
        step_s=block.step.typical_s,
        check_s=block.check.typical_s,
        suffix_s=prefixes.folded * suffix.typical_s,
        target_s=block.target_s,
        gather_s=block.gather_s,
        block_once_s=block.start_s + tracing_s,
        group_once_s=(1 + PREFIX_PASSES) * prefix.once_s + prefixes.whole.once_s + prefixes.trace_s,
        epoch_s=prefixes.epoch_s,
        load_s=setup.load_s,
    )


def _kind(task: BlockTask) -> Hashable:
    """Return the properties on which the time of a block depends."""
    layer = task.layer
    shapes = (layer.input_shape, layer.output_shape, layer.kernel_size, layer.strides, layer.dilation_rate)
    activation = json.dumps(layer.activation, sort_keys=True)
    return (task.design, *shapes, factored.groups(layer), layer.padding, layer.use_bias, activation)
