"""What the teacher takes, up to a few depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import data
from pbd.blockwise.distiller import GroupDistiller
from pbd.costs.layer_timing.block_probe import PROBE, distiller_of, probe
from pbd.costs.layer_timing.setup import Setup
from pbd.costs.layer_timing.step_time import MOST, WARM_UP, StepTime, seconds, time_step
from pbd.networks import folding
from pbd.records import BlockTask
from pbd.scheduling import cost_table

MOST_DEPTHS = 6
"""Depths at which the teacher's prefix is timed; those between are interpolated."""
PREFIX_PASSES = 3
"""What traces a group's prefix besides training: variances (with statistics for first weights), checks, scores."""


@dataclass(frozen=True)
class PrefixTimes:
    """What the teacher takes: by multiply-accumulates up to a few depths, and as a whole; tracing it once."""

    depths: Mapping[int, StepTime]
    whole: StepTime
    folded: float
    """What the whole takes for scoring, its normalisations folded, as a share of what it takes otherwise."""
    epoch_s: float
    """Starting to read the data."""
    trace_s: float
    """What all tracing of a group takes, were there no teacher and no blocks."""

    def upto(self, task: BlockTask) -> StepTime:
        """Return the forward's pace up to and including a layer."""
        typical_s = {macs: pace.typical_s for macs, pace in self.depths.items()}
        once_s = {macs: pace.once_s for macs, pace in self.depths.items()}
        macs = task.layer.prefix_macs
        return StepTime(cost_table.interpolated(typical_s, macs), cost_table.interpolated(once_s, macs))


def depths(tasks: Sequence[BlockTask]) -> list[BlockTask]:
    """Return the few tasks whose prefixes are timed, evenly spread, the shallowest and the deepest among them."""
    by_depth = sorted(
        {task.layer.prefix_macs: task for task in reversed(tasks)}.values(), key=lambda task: task.layer.prefix_macs
    )
    at = np.linspace(0, len(by_depth) - 1, min(MOST_DEPTHS, len(by_depth)))
    return [by_depth[place] for place in np.unique(at.round().astype(int))]


def prefix_times(teacher: keras.Model, setup: Setup, idle_step: StepTime, idle_check: StepTime) -> PrefixTimes:
    """Time training steps, data and all, of a block that costs nothing behind the teacher's prefixes."""
    outputs = {task.layer.prefix_macs: teacher.get_layer(task.layer.name).output for task in depths(setup.tasks)}
    tracing = StepTime(0.0, idle_step.once_s)
    paces = {m: _prefix_pace(_probed(teacher, output), setup.dataset).minus(tracing) for m, output in outputs.items()}
    whole = _probed(teacher, teacher.outputs[0])
    whole_pace = _prefix_pace(whole, setup.dataset).minus(tracing)
    folded, _ = folding.fold_around(teacher, {})
    folded_s = _prefix_pace(_probed(folded, folded.outputs[0]), setup.dataset).typical_s
    return PrefixTimes(
        depths=paces,
        whole=whole_pace,
        folded=min(1.0, folded_s / whole_pace.typical_s),
        epoch_s=_epoch_s(whole, setup.dataset),
        trace_s=idle_step.once_s + PREFIX_PASSES * idle_check.once_s,
    )


def _probed(teacher: keras.Model, output: Any) -> GroupDistiller:
    """Return a distiller of the probe that needs the teacher up to this tensor."""
    seen = keras.ops.reshape(keras.ops.mean(output, axis=tuple(range(1, len(output.shape)))), (-1, 1, 1, 1))
    return distiller_of(PROBE, keras.Model(teacher.inputs, {PROBE: [seen, seen]}), probe())


def _prefix_pace(distiller: GroupDistiller, dataset: data.Dataset) -> StepTime:
    batches = iter(dataset.training_batches(0, 2 + WARM_UP + MOST))  # enough even where an epoch is one step
    next(batches)  # waits until data flow
    return time_step(lambda: distiller.train_on_batch(next(batches)[0]))


def _epoch_s(distiller: GroupDistiller, dataset: data.Dataset) -> float:
    """Return what an epoch of one step takes, for a distiller that has been traced, beyond a step."""
    images, _ = next(iter(dataset.training_batches(0, 1)))

    def epoch() -> None:
        distiller.fit(dataset.training_batches(0, 1), steps_per_epoch=1, shuffle=False, verbose=0)

    epoch()
    return max(0.0, seconds(epoch) - seconds(lambda: distiller.train_on_batch(images)))
