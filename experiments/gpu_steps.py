"""Milliseconds of a grouped training step: through pbd, written by hand, block by block, and the least possible.

All train the same blocks of the same network on the same random images, which stay on the device as bytes. Of each, an
epoch of some steps is timed from the host until the device is done; the first epoch, which compiles, is not counted.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import keras
import numpy as np
from rich.table import Table

from experiments import hand_written_steps, step_floors
from experiments.hand_written_steps import HandWrittenEpochs
from experiments.networks import load_teacher
from experiments.step_floors import Rates
from pbd import blocks
from pbd.blockwise.distiller import GroupDistiller
from pbd.blockwise.tasks import enumerate_tasks
from pbd.collective import SINGLE
from pbd.data import Dataset, IndexedSplit
from pbd.data.feeds import device_images
from pbd.data.images import ArrayImages
from pbd.errors import PbdError
from pbd.learning.loop import adam, trainer
from pbd.networks import graph
from pbd.records import BlockKey, BlockTask
from pbd.system import devices

CLASSES = 10
LEARNING_RATE = 0.003


@dataclass(frozen=True)
class Row:
    """One network; milliseconds are of a step, medians over the epochs."""

    network: str
    image_size: int
    batch_size: int
    blocks: int
    pbd_ms: float
    by_hand_ms: float | None
    """`None` if it was refused."""
    difference: float | None
    """Largest relative difference between the losses of pbd and of the step written by hand."""
    one_by_one_ms: float | None
    """Sum over the layers; `None` if it was not measured."""
    layers_measured: int
    """One by one; between them, the milliseconds are interpolated."""
    operations_ms: float
    """Operations over the rate of matrix products."""
    bytes_ms: float
    """Bytes over the bandwidth of copies."""
    pbd_first_s: float
    """Seconds of pbd's first epoch, with tracing and compiling."""
    by_hand_first_s: float | None
    refused: str = ""
    """Why there is no step written by hand."""

    @property
    def over_by_hand(self) -> float | None:
        return None if self.by_hand_ms is None else self.pbd_ms / self.by_hand_ms

    @property
    def one_by_one_over_grouped(self) -> float | None:
        return None if self.one_by_one_ms is None else self.one_by_one_ms / self.pbd_ms

    @property
    def over_floor(self) -> float:
        return self.pbd_ms / max(self.operations_ms, self.bytes_ms)

    def figures(self) -> dict[str, Any]:
        """Return a line of the table."""
        ratios = ("over_by_hand", "one_by_one_over_grouped", "over_floor")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in ratios}


@dataclass(frozen=True)
class Timing:
    """How long is measured."""

    batch_size: int
    steps: int
    """Of an epoch."""
    epochs: int
    """That are counted."""
    augment: str = "none"
    images: int = 2048
    """On the device; an epoch reads them as often as its steps need."""
    seed: int = 0

    @property
    def all_steps(self) -> int:
        return self.steps * (self.epochs + 1)


def random_data(timing: Timing, image_shape: tuple[int, int, int]) -> Dataset:
    """Return random images, as bytes, with as many rows as an epoch has steps."""
    rng = np.random.default_rng(timing.seed)
    images = ArrayImages(rng.integers(0, 256, (timing.images, *image_shape), dtype=np.uint8), image_shape)
    rows = np.arange(timing.batch_size * timing.steps) % timing.images
    train = IndexedSplit(images, rows, (rows % CLASSES).astype(np.int32))
    few = dataclasses.replace(train, rows=rows[: timing.batch_size], labels=train.labels[: timing.batch_size])
    return Dataset(
        name="random images",
        train=train,
        validation=few,
        test=few,
        num_classes=CLASSES,
        image_shape=image_shape,
        batch_size=timing.batch_size,
        augment=timing.augment,
        preprocess="none",
        seed=timing.seed,
    )


def trained_tasks(teacher: keras.Model, block: str) -> list[BlockTask]:
    """Return the tasks of a network that pbd would train."""
    return [task for task in enumerate_tasks(teacher, blocks.get(block)) if task.skip_reason is None]


def build(tasks: Sequence[BlockTask]) -> dict[str, keras.Model]:
    """Return new blocks by layer, with random weights that derive from the layers' names."""
    return {task.layer.name: blocks.build_block(blocks.get(task.design), task.layer, seed=0) for task in tasks}


@dataclass(frozen=True)
class Timed:
    """Epochs of one way to train."""

    first: Any
    """What the first epoch returned."""
    first_s: float
    """Its seconds, with tracing and compiling."""
    step_ms: float
    """Median milliseconds of a step in the other epochs."""


def take_turns(ways: Sequence[Callable[[int], Any]], timing: Timing) -> list[Timed]:
    """Train the first epoch in each way, then the others in turn, so that other load falls on all.

    Args:
        ways: each trains the epoch of this number until the device is done.
        timing: how many epochs and steps there are.
    """
    firsts = [_timed(train, 0) for train in ways]
    rounds = [[_timed(train, epoch)[1] for train in ways] for epoch in range(1, timing.epochs + 1)]
    return [
        Timed(first, first_s, 1e3 * statistics.median(taken) / timing.steps)
        for (first, first_s), taken in zip(firsts, zip(*rounds, strict=True), strict=True)
    ]


def _timed(train: Callable[[int], Any], epoch: int) -> tuple[Any, float]:
    started = time.perf_counter()
    result = train(epoch)
    return result, time.perf_counter() - started


def pbd_epochs(
    teacher: keras.Model, built: Mapping[str, keras.Model], dataset: Dataset, all_steps: int
) -> Callable[[int], dict[str, list[float]]]:
    """Return what trains an epoch through pbd, until the device is done, and returns its mean losses."""
    keyed = {BlockKey(name, "measured"): block for name, block in built.items()}
    distiller = GroupDistiller(graph.truncate(teacher, built), keyed)
    weights = [variable for block in built.values() for variable in block.trainable_variables]
    learner = trainer(distiller, adam(LEARNING_RATE, all_steps, weights), dataset, SINGLE)

    def train(epoch: int) -> dict[str, list[float]]:
        history = learner.fit(epoch, epoch + 1, [])
        jax.block_until_ready([variable.value for variable in distiller.variables])
        return {BlockKey.parse(name).layer: losses for name, losses in history.items()}

    return train


def by_hand_epochs(
    teacher: keras.Model, built: Mapping[str, keras.Model], dataset: Dataset, all_steps: int
) -> Callable[[int], np.ndarray]:
    """Return what trains an epoch of the step written by hand, and returns its losses, `(steps, blocks)`.

    Raises:
        PbdError: see `hand_written_steps.network`.
    """
    resident = device_images.on_device(dataset, dataset.train)
    if resident is None:
        raise PbdError("the images must fit on the device. Received: too many of them. Give fewer --images.")
    form = None if dataset.augment == "none" else resident.form  # augmentation is pbd's own in both
    scanned = devices.has_accelerator()
    epochs = HandWrittenEpochs(teacher, built, LEARNING_RATE, all_steps, form, scanned)
    return lambda epoch: epochs.train(resident.images, resident.training_inputs(epoch))


def measure(name: str, teacher: keras.Model, block: str, timing: Timing, most_layers: int | None, rates: Rates) -> Row:
    """Measure one network.

    Args:
        name: for the table.
        teacher: flat and functional.
        block: name of the design.
        timing: how long to measure.
        most_layers: of how many layers the blocks are trained one by one, evenly spaced with the first and the last;
            0 for none, `None` for all.
        rates: of the device.
    """
    tasks = trained_tasks(teacher, block)
    built, dataset = build(tasks), random_data(timing, tuple(teacher.inputs[0].shape[1:]))
    ways: list[Callable[[int], Any]] = [pbd_epochs(teacher, built, dataset, timing.all_steps)]
    refused, difference = "", None
    try:  # it copies the weights, so no epoch may come before
        ways.append(by_hand_epochs(teacher, built, dataset, timing.all_steps))
    except PbdError as error:
        refused = str(error)
    ours, *others = take_turns(ways, timing)
    by_hand = others[0] if others else None
    if by_hand is not None:
        try:
            difference = hand_written_steps.compare_losses(list(built), ours.first, by_hand.first)
        except PbdError as error:
            refused = str(error)
    work = step_floors.of_step(teacher, built, timing.batch_size)
    sample = sampled(len(tasks), most_layers)
    alone_ms = {at: _alone_ms(teacher, tasks[at], dataset, timing) for at in sample}
    return Row(
        network=name,
        image_size=dataset.image_shape[0],
        batch_size=timing.batch_size,
        blocks=len(tasks),
        pbd_ms=ours.step_ms,
        by_hand_ms=by_hand.step_ms if by_hand and not refused else None,
        difference=difference,
        one_by_one_ms=interpolated_sum(alone_ms, len(tasks)) if alone_ms else None,
        layers_measured=len(sample),
        operations_ms=1e3 * work.operations / rates.operations_per_s,
        bytes_ms=1e3 * work.bytes / rates.bytes_per_s,
        pbd_first_s=ours.first_s,
        by_hand_first_s=by_hand.first_s if by_hand else None,
        refused=refused,
    )


def _alone_ms(teacher: keras.Model, task: BlockTask, dataset: Dataset, timing: Timing) -> float:
    (alone,) = take_turns([pbd_epochs(teacher, build([task]), dataset, timing.all_steps)], timing)
    return alone.step_ms


def sampled(layers: int, most: int | None) -> list[int]:
    """Return the numbers of at most `most` of the layers, evenly spaced, the first and the last among them."""
    if most is None or most >= layers:
        return list(range(layers))
    return sorted({round(at) for at in np.linspace(0, layers - 1, most)}) if most > 1 else [layers // 2][:most]


def interpolated_sum(alone_ms: Mapping[int, float], layers: int) -> float:
    """Return the sum over all layers, of which some were measured: between two of them, the time is linear."""
    return float(np.interp(np.arange(layers), list(alone_ms), list(alone_ms.values())).sum())


def parse_network(text: str) -> tuple[str, int]:
    """Return the name and the image size of `NAME` or `NAME@PIXELS`; 32 pixels by default."""
    name, at, size = text.rpartition("@")
    return (name, int(size)) if at and size.isdecimal() and int(size) > 0 else (text, 32)


def load(text: str) -> tuple[str, keras.Model]:
    """Return the name and the network of `NAME` or `NAME@PIXELS`.

    Raises:
        PbdError: there is no such network.
    """
    name, size = parse_network(text)
    return name, load_teacher(name, size)


def as_table(rows: Sequence[Row], rates: Rates, augment: str) -> Table:
    """Return the rows for a terminal."""
    table = Table(
        title=f"Milliseconds of a grouped training step on {', '.join(devices.names())}, augmentation: {augment}",
        caption=f"Floors: {rates.operations_per_s / 1e12:.2f} Tflop/s of matrix products, "
        f"{rates.bytes_per_s / 1e9:.0f} GB/s of copies. One by one: the sum over all layers; of n/N layers, n were "
        "measured and the others interpolated. First: seconds of the first epoch, with tracing and compiling.",
    )
    headings = ("network", "pixels", "batch", "blocks", "pbd", "by hand", "pbd /\nby hand", "one by\none", "layers")
    headings += ("one by one\n/ pbd", "operations", "bytes", "pbd /\nfloor", "first, s:\npbd", "by\nhand")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        sizes = (row.image_size, row.batch_size, row.blocks)
        table.add_row(
            row.network,
            *map(str, sizes),
            *map(_number, (row.pbd_ms, row.by_hand_ms, row.over_by_hand, row.one_by_one_ms)),
            f"{row.layers_measured}/{row.blocks}",
            *map(_number, (row.one_by_one_over_grouped, row.operations_ms, row.bytes_ms, row.over_floor)),
            *map(_number, (row.pbd_first_s, row.by_hand_first_s)),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
