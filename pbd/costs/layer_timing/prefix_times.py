"""The times of the teacher's forward pass up to a few depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import data
from pbd.blockwise.distiller import GroupDistiller
from pbd.costs.layer_timing.block_probe import BASELINE, BaselineTimes, baseline_block, compile_distiller
from pbd.costs.layer_timing.setup import Setup
from pbd.costs.layer_timing.step_time import MAX_STEPS, WARM_UP, Deadline, StepTime, seconds, time_step
from pbd.networks import folding
from pbd.networks.cost import count_macs
from pbd.records import BlockTask
from pbd.scheduling import cost_table

MAX_DEPTHS = 6
"""The number of depths at which the teacher's prefix is timed; other depths are interpolated."""
PREFIX_PASSES = 3
"""How often a group traces its prefix outside training: variances (with statistics for initial weights), checks,
scores."""


@dataclass(frozen=True)
class PrefixTimes:
    """The times of the teacher's forward pass, reading the data included."""

    depths: Mapping[int, StepTime]
    """The times by the multiply-accumulates of the prefix."""
    whole: StepTime
    """The whole teacher."""
    folded: float
    """The time of the whole teacher with folded normalisations, as scoring runs it, as a fraction of `whole`."""
    epoch_s: float
    """Starting an epoch of the data."""
    trace_s: float
    """All tracing of a group without a teacher and blocks."""

    def upto(self, task: BlockTask) -> StepTime:
        """Return the time of the forward pass up to and including a layer."""
        typical_s = {macs: time.typical_s for macs, time in self.depths.items()}
        once_s = {macs: time.once_s for macs, time in self.depths.items()}
        macs = task.layer.prefix_macs
        return StepTime(cost_table.interpolated(typical_s, macs), cost_table.interpolated(once_s, macs))


def depths(tasks: Sequence[BlockTask]) -> list[BlockTask]:
    """Return the tasks whose prefixes are timed: evenly spread, with the shallowest and the deepest."""
    by_depth = sorted(
        {task.layer.prefix_macs: task for task in reversed(tasks)}.values(), key=lambda task: task.layer.prefix_macs
    )
    places = np.linspace(0, len(by_depth) - 1, min(MAX_DEPTHS, len(by_depth)))
    return [by_depth[place] for place in np.unique(places.round().astype(int))]


def prefix_times(teacher: keras.Model, setup: Setup, baseline: BaselineTimes, deadline: Deadline) -> PrefixTimes:
    """Time training steps of the baseline block after prefixes of the teacher, reading the data included.

    The whole teacher is timed first, then prefixes from the deepest to the shallowest, until the deadline.
    """
    tracing = StepTime(0.0, baseline.step.once_s)

    def forward(distiller: GroupDistiller) -> StepTime:
        return _step_time(distiller, setup.dataset).minus(tracing)

    whole_distiller = _baseline_behind(teacher, teacher.outputs[0])
    whole = forward(whole_distiller)
    # The empty prefix and the whole teacher bound the interpolation if the deadline leaves depths untimed.
    times = {0: StepTime(0.0, 0.0), count_macs(teacher): whole}
    operations = {operation.name: operation for operation in teacher.operations}  # `+` is no layer
    for task in reversed(depths(setup.tasks)):
        if deadline.passed():
            break
        output = operations[task.layer.name].output
        times[task.layer.prefix_macs] = forward(_baseline_behind(teacher, output))
    return PrefixTimes(
        depths=times,
        whole=whole,
        folded=1.0 if deadline.passed() else _folded_fraction(teacher, setup.dataset, whole),
        epoch_s=_epoch_s(whole_distiller, setup.dataset),
        trace_s=baseline.step.once_s + PREFIX_PASSES * baseline.check.once_s,
    )


def _folded_fraction(teacher: keras.Model, dataset: data.Dataset, whole: StepTime) -> float:
    folded, _ = folding.fold_around(teacher, {})
    folded_s = _step_time(_baseline_behind(folded, folded.outputs[0]), dataset).typical_s
    return min(1.0, folded_s / whole.typical_s)


def _baseline_behind(teacher: keras.Model, output: Any) -> GroupDistiller:
    """Return a distiller of the baseline block whose forward pass computes the teacher up to this tensor."""
    scalar = keras.ops.reshape(keras.ops.mean(output, axis=tuple(range(1, len(output.shape)))), (-1, 1, 1, 1))
    prefix = keras.Model(teacher.inputs[0], {BASELINE.layer: [scalar, scalar]})
    return compile_distiller(BASELINE, prefix, baseline_block())


def _step_time(distiller: GroupDistiller, dataset: data.Dataset) -> StepTime:
    batches = iter(dataset.training_batches(0, 2 + WARM_UP + MAX_STEPS))  # enough epochs if one has a single step
    next(batches)  # starting the data pipeline is not part of a step
    return time_step(lambda: distiller.train_on_batch(next(batches)[0]))


def _epoch_s(distiller: GroupDistiller, dataset: data.Dataset) -> float:
    """Return how much longer an epoch of one step takes than the step, for a distiller that is already traced."""
    images, _ = next(iter(dataset.training_batches(0, 1)))

    def epoch() -> None:
        distiller.fit(dataset.training_batches(0, 1), steps_per_epoch=1, shuffle=False, verbose=0)

    epoch()
    return max(0.0, seconds(epoch) - seconds(lambda: distiller.train_on_batch(images)))
