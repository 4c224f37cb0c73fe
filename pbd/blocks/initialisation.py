"""A block's first weights: the teacher's own kernel, decoupled, and fitted to a few thousand of its inputs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.blocks import decoupling
from pbd.blocks.decoupling import Factors
from pbd.records import LayerTask
from pbd.system import watchdog

FIT_IMAGES = 2048
"""How many training images, unaugmented, the least squares see."""
PATCHES_PER_VALUE = 16
"""Patches gathered for each value of a patch, at least: enough to tell its second moment from noise."""


def gathers(block: str, block_init: str) -> bool:
    """Return whether first weights rest on statistics of images."""
    return block_init == "fitted" or (block_init != "noise" and block not in blocks.DECOUPLED_RANKS)


def initialise(
    built: dict[str, keras.Model],
    tasks: Iterable[LayerTask],
    teacher: keras.Model,
    prefix: keras.Model,
    images: Iterable[Any],
    block: str,
    block_init: str,
    seed: int,
) -> None:
    """Give the blocks their first weights, in place.

    Args:
        built: the blocks by layer, with the random weights they were built with.
        tasks: their layers.
        teacher: holds the kernels.
        prefix: from images to each layer's input and output (see `graph.truncate`).
        images: batches of training images, read once; only `fitted` and the paper's designs look at them.
        block: a key of `pbd.blocks.BLOCKS`.
        block_init: `noise`, `kernel` or `fitted` (see `BlockConfig`).
        seed: the run's.
    """
    if block_init == "noise":
        return
    tasks = list(tasks)
    decouples = block in blocks.DECOUPLED_RANKS
    statistics = {task.layer_name: Statistics.empty(task, seed) for task in tasks}
    if gathers(block, block_init):
        gather(statistics, prefix, images, targets=not decouples)
    for task in tasks:
        layer, seen = teacher.get_layer(task.layer_name), statistics[task.layer_name]
        rank = blocks.most_ranks(task, blocks.DECOUPLED_RANKS.get(block, 1))
        factors, bias = _factors(layer, seen, rank, block_init == "fitted")
        if decouples:
            blocks.set_factors(built[task.layer_name], task, factors, bias)
        else:
            blocks.set_separable(built[task.layer_name], task, factors, seen.target_mean, seen.target_deviation)


def _factors(layer: keras.layers.Conv2D, seen: "Statistics", rank: int, fitted: bool) -> tuple[Factors, np.ndarray]:
    """Return the layer's factors, and the bias that goes with them."""
    kernel = dense_kernel(layer)
    bias = _numbers(layer.bias) if layer.use_bias else np.zeros(kernel.shape[-1])
    if not fitted:
        return decoupling.decouple(kernel, rank), bias
    if not layer.use_bias:
        return decoupling.fit(kernel, seen.moment, rank), bias
    mean = seen.mean
    factors = decoupling.fit(kernel, seen.covariance, rank)
    missed = (kernel - factors.kernel).reshape(len(mean), -1)
    return factors, bias + mean @ missed


def dense_kernel(layer: keras.layers.Conv2D) -> np.ndarray:
    """Return the layer's kernel as (input channels, positions, outputs), zero between groups."""
    kernel = _numbers(layer.kernel)
    height, width, per_group, outputs = kernel.shape
    kernel = kernel.reshape(height * width, per_group, layer.groups, outputs // layer.groups)
    dense = np.zeros((layer.groups, per_group, height * width, layer.groups, outputs // layer.groups))
    for group in range(layer.groups):
        dense[group, :, :, group] = kernel[:, :, group].transpose(1, 0, 2)
    return dense.reshape(layer.groups * per_group, height * width, outputs)


def _numbers(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


@dataclass
class Statistics:
    """Running sums over a layer's input patches and its output."""

    task: LayerTask
    draws: np.random.Generator
    patches: int = 0
    centre: Any = 0.0
    first: Any = 0.0
    second: Any = 0.0
    batches: int = 0
    targets: Any = 0.0
    squares: Any = 0.0

    @classmethod
    def empty(cls, task: LayerTask, seed: int) -> "Statistics":
        """Return sums over nothing; the seed and the layer decide which patches are looked at."""
        return cls(task, np.random.default_rng(blocks.derive_seed(seed, task.layer_name, "patches")))

    @property
    def moment(self) -> np.ndarray:
        """Mean of p p^T over patches p, channel by channel, (values, values)."""
        return self.covariance + np.outer(self.mean, self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the patches' values, (values, values)."""
        shift = np.asarray(self.first, np.float64) / self.patches
        return np.asarray(self.second, np.float64) / self.patches - np.outer(shift, shift)

    @property
    def mean(self) -> np.ndarray:
        """Mean patch, (values,)."""
        return self.centre + np.asarray(self.first, np.float64) / self.patches

    @property
    def target_mean(self) -> np.ndarray:
        """Mean of the layer's output, (channels,)."""
        return self.targets / self.batches

    @property
    def target_deviation(self) -> np.ndarray:
        """Standard deviation of the layer's output, (channels,)."""
        return np.sqrt(np.maximum(self.squares / self.batches - self.target_mean**2, 0.0))

    def add(self, inputs: np.ndarray, outputs: np.ndarray | None = None) -> None:
        """Take in a batch of the layer's inputs and, if they matter, outputs, (images, height, width, channels)."""
        patches = self._some_patches(inputs)
        if not self.patches:  # sums around a first mean lose nothing where the mean is far larger than what varies
            self.centre = patches.mean(axis=0, dtype=np.float64).astype(patches.dtype)
        patches = patches - self.centre
        self.patches += len(patches)
        self.first = self.first + patches.sum(axis=0)
        self.second = self.second + patches.T @ patches
        if outputs is None:
            return
        self.batches += 1
        self.targets = self.targets + outputs.mean(axis=(0, 1, 2), dtype=np.float64)
        self.squares = self.squares + np.square(outputs).mean(axis=(0, 1, 2), dtype=np.float64)

    def _some_patches(self, inputs: np.ndarray) -> np.ndarray:
        """Return patches of a regular grid with a random offset, so that every position is as likely, borders too."""
        windows = all_patches(inputs, self.task)
        rows, columns = windows.shape[1:3]
        values = math.prod(windows.shape[3:])
        wanted = max(16, PATCHES_PER_VALUE * values // FIT_IMAGES)
        step = max(1, math.isqrt(rows * columns // wanted))
        row, column = self.draws.integers(min(step, rows)), self.draws.integers(min(step, columns))
        return windows[:, row::step, column::step].reshape(-1, values)


def all_patches(inputs: np.ndarray, task: LayerTask) -> np.ndarray:
    """Return a view of what each output position sees, (images, rows, columns, channels, *kernel_size)."""
    reach = [(size - 1) * rate + 1 for size, rate in zip(task.kernel_size, task.dilation_rate, strict=True)]
    if task.padding == "same":
        margins = [
            max(0, (-(-side // stride) - 1) * stride + extent - side)
            for side, stride, extent in zip(inputs.shape[1:3], task.strides, reach, strict=True)
        ]
        inputs = np.pad(inputs, ((0, 0), *((margin // 2, margin - margin // 2) for margin in margins), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(inputs, reach, axis=(1, 2))
    (down, right), (low, wide) = task.strides, task.dilation_rate
    return windows[:, ::down, ::right, :, ::low, ::wide]


def gather(statistics: dict[str, Statistics], prefix: keras.Model, images: Iterable[Any], targets: bool = True) -> None:
    """Add the layers' inputs and, unless told otherwise, outputs on these images to their statistics."""
    for batch in images:
        watchdog.touch()
        activations = prefix.predict_on_batch(batch)
        for name, seen in statistics.items():
            inputs, outputs = activations[name]
            seen.add(np.asarray(inputs, np.float32), np.asarray(outputs, np.float32) if targets else None)
