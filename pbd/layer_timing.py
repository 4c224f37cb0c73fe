"""Measure, in a few steps of each kind, what each layer's block will cost on this device."""

import contextlib
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import blocks, datasets, devices, evaluation, folding, graph, initialisation, watchdog
from pbd.distilling import STOPPING_IMAGES, GroupDistiller
from pbd.fitting import adam
from pbd.records import LayerTask
from pbd.scheduling import cost_table
from pbd.scheduling.cost_table import Conditions, CostTable, LayerTimes, Workload

MOST_DEPTHS = 6
"""Depths at which the teacher's prefix is timed; those between are interpolated."""
WARM_UP = 1
FEWEST, MOST = 4, 12
"""Steps that are timed behind the warm-up."""
ENOUGH_S = 0.4
"""No more steps are timed once so many seconds have been, and the fewest are done."""
PREFIX_PASSES = 3
"""What traces a group's prefix besides training: variances (with statistics for first weights), checks, scores."""
BLOCK_TRACES = 3
"""How often it traces a block's forward: checks, its error, its swapped scores."""
PROBE = "probe"


@dataclass(frozen=True)
class Setup:
    """What is to be predicted, and what it is measured with."""

    teacher: keras.Model
    """Flat and functional; it is copied, never changed."""
    tasks: tuple[LayerTask, ...]
    """The layers to train."""
    dataset: datasets.Dataset
    block: str
    block_init: str
    load_s: float = 0.0
    """What loading the teacher and the data took."""

    @property
    def conditions(self) -> Conditions:
        """What a table for it must have been made for."""
        return Conditions(structure_digest(self.teacher), self.block, self.block_init, self.dataset.batch_size)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(task.layer_name for task in self.tasks)

    @property
    def gathers(self) -> bool:
        """Whether first weights are fitted to images."""
        return initialisation.gathers(self.block, self.block_init)

    def workload(self, epochs: int) -> Workload:
        """Return how many batches a group goes through."""
        size, held_out = self.dataset.batch_size, len(self.dataset.validation)
        fitted = min(initialisation.FIT_IMAGES, len(self.dataset.train)) if self.gathers else 0
        return Workload(
            epochs=epochs,
            steps_per_epoch=self.dataset.steps_per_epoch,
            check_batches=math.ceil(min(STOPPING_IMAGES, held_out) / size),
            fit_batches=math.ceil(fitted / size),
            score_batches=math.ceil(held_out / size),
        )


def structure_digest(teacher: keras.Model) -> str:
    """Return a digest of what decides a flat teacher's speed: its layers' kinds, shapes and types, not its weights."""
    layers = [
        [
            *(type(layer).__name__, layer.compute_dtype, evaluation.layer_macs(layer), calls),
            *(str(output.shape) for output in keras.tree.flatten(layer.output)),
        ]
        for layer, calls in evaluation.layer_calls(teacher)
    ]
    names = [layer.name for layer, _ in graph.find_convolutions(teacher)]
    return hashlib.sha256(json.dumps([layers, names]).encode()).hexdigest()[:16]


def calibrate(setup: Setup) -> CostTable:
    """Return a table measured here and now, with the very steps that training takes.

    Blocks with equal shapes are timed once, the teacher's prefix at a few depths. Nothing that a run's randomness
    hangs on is touched.
    """
    with _randomness_kept():
        return _measure(setup)


@contextlib.contextmanager
def _randomness_kept() -> Iterator[None]:
    """Leave Python's and NumPy's generators, from which Keras seeds layers, as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@dataclass(frozen=True)
class Pace:
    """How long something takes, in seconds: typically, and how much longer the first time."""

    typical_s: float
    once_s: float

    def beyond(self, other: "Pace") -> "Pace":
        """Return what is left without the other, at least 0."""
        return Pace(max(0.0, self.typical_s - other.typical_s), max(0.0, self.once_s - other.once_s))


def pace_of(step: Callable[[], object]) -> Pace:
    """Time a step that traces itself the first time: the median of a few behind the warm-up, which outliers miss."""
    first_s = _seconds(step)
    watchdog.alive()
    for _ in range(WARM_UP):
        step()
    taken: list[float] = []
    while len(taken) < FEWEST or (len(taken) < MOST and sum(taken) < ENOUGH_S):
        taken.append(_seconds(step))
    typical_s = statistics.median(taken)
    return Pace(typical_s, max(0.0, first_s - typical_s))


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@dataclass(frozen=True)
class BlockTimes:
    """What blocks of one kind take, in seconds."""

    step: Pace
    check: Pace
    target_s: float
    gather_s: float
    start_s: float
    """Building and first weights."""


@dataclass(frozen=True)
class PrefixTimes:
    """What the teacher takes: by multiply-accumulates up to a few depths, and as a whole; tracing it once."""

    depths: Mapping[int, Pace]
    whole: Pace
    folded: float
    """What the whole takes for scoring, its normalisations folded, as a share of what it takes otherwise."""
    epoch_s: float
    """Starting to read the data."""
    trace_s: float
    """What all tracing of a group takes, were there no teacher and no blocks."""

    def upto(self, task: LayerTask) -> Pace:
        """Return the forward's pace up to and including a layer."""
        typical_s = {macs: pace.typical_s for macs, pace in self.depths.items()}
        once_s = {macs: pace.once_s for macs, pace in self.depths.items()}
        macs = task.prefix_macs
        return Pace(cost_table.interpolated(typical_s, macs), cost_table.interpolated(once_s, macs))


def _measure(setup: Setup) -> CostTable:
    teacher = graph.flatten(setup.teacher)  # a copy: training a block freezes the layers of its prefix
    _idle_paces(setup)  # pays for what a process pays once
    idle = _idle_paces(setup)
    prefixes = _prefix_times(teacher, setup, *idle)
    kinds = {_kind(task): task for task in setup.tasks}
    times = {kind: _block_times(task, setup, teacher, *idle) for kind, task in kinds.items()}
    layers = {task.layer_name: _layer_times(setup, prefixes, task, times[_kind(task)]) for task in setup.tasks}
    device = devices.describe()
    return CostTable(setup.conditions, device, f"calibrated on {device}", layers)


def _layer_times(setup: Setup, prefixes: PrefixTimes, task: LayerTask, own: BlockTimes) -> LayerTimes:
    prefix = prefixes.upto(task)
    suffix = prefixes.whole.beyond(prefix)
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


def depths(tasks: Sequence[LayerTask]) -> list[LayerTask]:
    """Return the few tasks whose prefixes are timed, evenly spread, the shallowest and the deepest among them."""
    by_depth = sorted({task.prefix_macs: task for task in reversed(tasks)}.values(), key=lambda task: task.prefix_macs)
    at = np.linspace(0, len(by_depth) - 1, min(MOST_DEPTHS, len(by_depth)))
    return [by_depth[place] for place in np.unique(at.round().astype(int))]


def _kind(task: LayerTask) -> tuple[object, ...]:
    """Return what two layers must have in common for their blocks to take the same time."""
    shapes = (task.input_shape, task.output_shape, task.kernel_size, task.strides, task.dilation_rate)
    return (*shapes, task.padding, task.use_bias, json.dumps(task.activation, sort_keys=True))


def _probe() -> keras.Model:
    """A block that costs next to nothing."""
    inputs = keras.Input((1, 1, 1))
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, name="pbd_probe")(inputs))


def _idle_paces(setup: Setup) -> tuple[Pace, Pace]:
    """Return the paces of a step and a check of the probe, without a teacher or data."""
    alone = _Alone.of(PROBE, _probe(), (1, 1, 1), (1, 1, 1), setup.dataset.batch_size)
    return alone.step, alone.check


def _distiller(name: str, prefix: keras.Model, block: keras.Model) -> GroupDistiller:
    distiller = GroupDistiller(prefix, {name: block})
    distiller.compile(adam(1e-3, 1), jit_compile=devices.compiles_with_xla())
    return distiller


def _prefix_times(teacher: keras.Model, setup: Setup, idle_step: Pace, idle_check: Pace) -> PrefixTimes:
    """Time training steps, data and all, of a block that costs nothing behind the teacher's prefixes."""
    outputs = {task.prefix_macs: teacher.get_layer(task.layer_name).output for task in depths(setup.tasks)}
    tracing = Pace(0.0, idle_step.once_s)
    paces = {m: _prefix_pace(_probed(teacher, output), setup.dataset).beyond(tracing) for m, output in outputs.items()}
    whole = _probed(teacher, teacher.outputs[0])
    whole_pace = _prefix_pace(whole, setup.dataset).beyond(tracing)
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
    return _distiller(PROBE, keras.Model(teacher.inputs, {PROBE: [seen, seen]}), _probe())


def _prefix_pace(distiller: GroupDistiller, dataset: datasets.Dataset) -> Pace:
    batches = iter(dataset.training_batches(0, 2 + WARM_UP + MOST))  # enough even where an epoch is one step
    next(batches)  # waits until data flow
    return pace_of(lambda: distiller.train_on_batch(next(batches)[0]))


def _epoch_s(distiller: GroupDistiller, dataset: datasets.Dataset) -> float:
    """Return what an epoch of one step takes, for a distiller that has been traced, beyond a step."""
    images, _ = next(iter(dataset.training_batches(0, 1)))

    def epoch() -> None:
        distiller.fit(dataset.training_batches(0, 1), steps_per_epoch=1, shuffle=False, verbose=0)

    epoch()
    return max(0.0, _seconds(epoch) - _seconds(lambda: distiller.train_on_batch(images)))


@dataclass(frozen=True)
class _Alone:
    """A block that learns from tensors at hand, without a teacher in front of it."""

    prefix: keras.Model
    distiller: GroupDistiller
    batch: list[Any]
    """The block's inputs and its targets."""

    @classmethod
    def of(
        cls, name: str, block: keras.Model, input_shape: tuple[int, ...], output_shape: tuple[int, ...], images: int
    ) -> "_Alone":
        ends = [keras.Input(input_shape), keras.Input(output_shape)]
        prefix = keras.Model(ends, {name: ends})
        draws = np.random.default_rng(0)
        shapes = [(images, *shape) for shape in (input_shape, output_shape)]
        batch = [keras.ops.convert_to_tensor(draws.standard_normal(shape, np.float32)) for shape in shapes]
        return cls(prefix, _distiller(name, prefix, block), batch)

    @property
    def step(self) -> Pace:
        """Of training."""
        return pace_of(lambda: self.distiller.train_on_batch(self.batch))

    @property
    def check(self) -> Pace:
        """Of the block's forward and its error."""
        return pace_of(lambda: self.distiller.predict_on_batch(self.batch))

    @property
    def target_s(self) -> float:
        """Of the moments that a layer's output is normalised by."""

        def moments() -> None:
            ((_, target),) = self.prefix.predict_on_batch(self.batch).values()
            target = np.asarray(target, np.float64)
            _ = target.sum(), np.square(target).sum()

        return pace_of(moments).typical_s


def _block_times(task: LayerTask, setup: Setup, teacher: keras.Model, idle_step: Pace, idle_check: Pace) -> BlockTimes:
    """Time what the layer's block adds to a group, beyond what a block that computes nothing takes."""
    started = time.perf_counter()
    block = blocks.build_block(setup.block, task, seed=0)
    built_s = time.perf_counter() - started
    alone = _Alone.of(task.layer_name, block, task.input_shape, task.output_shape, setup.dataset.batch_size)
    step, check, target_s = alone.step.beyond(idle_step), alone.check.beyond(idle_check), alone.target_s
    gather_s, fit_s = _first_weights_s(alone, task, block, setup, teacher)
    return BlockTimes(step, check, target_s, gather_s, built_s + fit_s)


def _first_weights_s(
    alone: _Alone, task: LayerTask, block: keras.Model, setup: Setup, teacher: keras.Model
) -> tuple[float, float]:
    """Return what the statistics of a batch take, and what the first weights take once these are there."""
    built, images = {task.layer_name: block}, [alone.batch]

    def gather() -> None:
        seen = {task.layer_name: initialisation.Statistics.empty(task, 0)}
        initialisation.gather(seen, alone.prefix, images, targets=setup.block not in blocks.DECOUPLED_RANKS)

    gather_s = pace_of(gather).typical_s if setup.gathers else 0.0
    whole_s = _seconds(
        lambda: initialisation.initialise(
            built, [task], teacher, alone.prefix, images, setup.block, setup.block_init, seed=0
        )
    )
    return gather_s, max(0.0, whole_s - gather_s)
