"""Closed-form initial weights of blocks, from the teacher's kernels and the statistics of a few thousand images."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from pbd.blocks import decoupling
from pbd.blocks.decoupling import Factors
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.seeds import derive_seed
from pbd.records import BlockKey, BlockTask, Layer
from pbd.system import watchdog

FIT_IMAGES = 2048
"""Training images, unaugmented, whose statistics are gathered."""
PATCHES_PER_VALUE = 16
"""Fewest patches gathered per value of a patch, so that the estimate of the second moment is well conditioned."""

GATHER_COPIES = 3
"""Copies of a batch's activations while statistics are gathered: tensors, arrays, and one in transfer."""
FIT_COPIES = 8
"""Float64 copies of a layer's second moment while its block is fitted."""


def moment_bytes(layer: Layer) -> int:
    """Return the size of the second moment of a layer's input patches, which is gathered in float32."""
    return 4 * (math.prod(layer.kernel_size) * layer.input_shape[-1]) ** 2


def peak_bytes(activations: Sequence[int], moments: Sequence[int]) -> int:
    """Return the predicted peak memory in bytes while blocks are initialised together; 0 without moments.

    Args:
        activations: per block, bytes of its layer's input and output on a batch.
        moments: per block, `moment_bytes` of its layer; 0 if its initialisation does not use inputs.
    """
    if not any(moments):
        return 0
    # All moments are gathered in one pass. Then the blocks are fitted one after the other, in float64.
    return sum(moments) + max(GATHER_COPIES * sum(activations), 2 * FIT_COPIES * max(moments))


def statistics_needed(design: BlockDesign, block_init: str) -> tuple[bool, bool]:
    """Return whether the closed-form initialisation uses statistics of the layer's inputs, and of its outputs.

    Args:
        design: the blocks' design.
        block_init: `noise`, `kernel` or `fitted` (see `BlockConfig`).
    """
    if block_init == "noise":
        return False, False
    return design.needs_inputs and block_init == "fitted", design.needs_targets


def initialise(
    built: Mapping[BlockKey, keras.Model],
    tasks: Iterable[BlockTask],
    designs: Mapping[str, BlockDesign],
    teacher: keras.Model,
    prefix: keras.Model,
    images: Iterable[Any],
    block_init: str,
    seed: int,
) -> None:
    """Set the weights of several blocks in closed form, in place.

    Args:
        built: the blocks, with random weights; all blocks of a layer use the same statistics.
        tasks: their tasks.
        designs: the tasks' designs by name.
        teacher: holds the kernels.
        prefix: from images to each layer's input and output (see `graph.truncate`).
        images: batches of training images, read once, and only if a design needs statistics.
        block_init: `noise` (keep random weights), `kernel` or `fitted` (see `BlockConfig`).
        seed: the run's.
    """
    if block_init == "noise":
        return
    tasks = list(tasks)
    needed: dict[str, tuple[bool, bool]] = {}
    for task in tasks:
        inputs, targets = statistics_needed(designs[task.design], block_init)
        others = needed.get(task.layer.name, (False, False))
        needed[task.layer.name] = (inputs or others[0], targets or others[1])
    statistics = {task.layer.name: Statistics.empty(task.layer, seed) for task in tasks if any(needed[task.layer.name])}
    if statistics:
        gather(statistics, prefix, images, needed)
    for task in tasks:
        name, design = task.layer.name, designs[task.design]
        kernel = layer_kernel(teacher.get_layer(name))
        shown = _shown(statistics.get(name), *statistics_needed(design, block_init))
        design.initialise(built[task.key], task.layer, kernel, shown)


def _shown(statistics: "Statistics | None", inputs: bool, targets: bool) -> "Statistics | None":
    """Return the statistics that a design needs, so that it starts the same beside other designs and alone."""
    if statistics is None or not (inputs or targets):
        return None
    return statistics if inputs else replace(statistics, patches=0)


def initial_factors(
    kernel: LayerKernel, statistics: "Statistics | None", rank: int, use_bias: bool
) -> tuple[Factors, np.ndarray]:
    """Return the kernel's factors of this rank, and the bias that minimises the error with them.

    Without statistics of inputs the factors approximate the kernel itself; with them, the layer's output.

    Args:
        kernel: of the layer.
        statistics: of the layer, or None.
        rank: depthwise filters for each input channel.
        use_bias: whether the block has a bias.

    Returns:
        The factors, and a bias of shape `(outputs,)`.
    """
    if statistics is None or not statistics.patches:
        return decoupling.decouple(kernel.dense, rank), kernel.bias
    if not use_bias:
        return decoupling.fit(kernel.dense, statistics.moment, rank), kernel.bias
    # For any factors, the best bias cancels the mean error, (K - X)^T E[p]. What remains of the error is the quadratic
    # form of `decoupling` with the covariance in place of the second moment.
    factors = decoupling.fit(kernel.dense, statistics.covariance, rank)
    error = (kernel.dense - factors.kernel).reshape(len(statistics.mean), -1)
    return factors, kernel.bias + statistics.mean @ error


def layer_kernel(layer: keras.layers.Conv2D) -> LayerKernel:
    """Return the trained weights of a convolution."""
    dense = dense_kernel(layer)
    return LayerKernel(dense, _float64(layer.bias) if layer.use_bias else np.zeros(dense.shape[-1]))


def dense_kernel(layer: keras.layers.Conv2D) -> np.ndarray:
    """Return the layer's kernel as (input channels, positions, outputs), zero between groups."""
    kernel = _float64(layer.kernel)
    height, width, per_group, outputs = kernel.shape
    kernel = kernel.reshape(height * width, per_group, layer.groups, outputs // layer.groups)
    dense = np.zeros((layer.groups, per_group, height * width, layer.groups, outputs // layer.groups))
    for group in range(layer.groups):
        dense[group, :, :, group] = kernel[:, :, group].transpose(1, 0, 2)
    return dense.reshape(layer.groups * per_group, height * width, outputs)


def _float64(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


@dataclass
class Statistics:
    """Running sums over the input patches and the output of a layer.

    A patch holds the inputs of one output position: `values` = channels x positions numbers, channel by channel. The
    sums of patches are float32, for speed; they are taken around a centre near the mean, which keeps them accurate.
    """

    layer: Layer
    generator: np.random.Generator
    """Chooses the patches."""
    patches: int = 0
    """Patches gathered so far."""
    centre: Any = 0.0
    """Mean patch of the first batch, (values,)."""
    first: Any = 0.0
    """Sum of p - centre over patches p, (values,)."""
    second: Any = 0.0
    """Sum of (p - centre)(p - centre)^T, (values, values)."""
    batches: int = 0
    """Batches of outputs so far."""
    targets: Any = 0.0
    """Sum over batches of the output's mean, (channels,)."""
    squares: Any = 0.0
    """Sum over batches of the mean squared output, (channels,)."""

    @classmethod
    def empty(cls, layer: Layer, seed: int) -> "Statistics":
        """Return empty statistics; the run's seed and the layer's name determine which patches are gathered."""
        return cls(layer, np.random.default_rng(derive_seed(seed, layer.name, "patches")))

    @property
    def moment(self) -> np.ndarray:
        """Mean of p p^T over patches p, (values, values)."""
        # E[p p^T] = Cov(p) + E[p] E[p]^T
        return self.covariance + np.outer(self.mean, self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the patches, (values, values)."""
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

    def add_inputs(self, inputs: np.ndarray) -> None:
        """Add the patches of a batch of the layer's inputs, (images, height, width, channels)."""
        patches = self._some_patches(inputs)
        if not self.patches:
            self.centre = patches.mean(axis=0, dtype=np.float64).astype(patches.dtype)
        patches = patches - self.centre
        self.patches += len(patches)
        self.first = self.first + patches.sum(axis=0)
        self.second = self.second + patches.T @ patches

    def add_targets(self, outputs: np.ndarray) -> None:
        """Add a batch of the layer's outputs, (images, height, width, channels)."""
        self.batches += 1
        self.targets = self.targets + outputs.mean(axis=(0, 1, 2), dtype=np.float64)
        self.squares = self.squares + np.square(outputs).mean(axis=(0, 1, 2), dtype=np.float64)

    def _some_patches(self, inputs: np.ndarray) -> np.ndarray:
        """Return the patches on a regular grid with a random offset, (patches, values).

        The random offset makes all positions equally likely, borders included.
        """
        windows = all_patches(inputs, self.layer)
        rows, columns = windows.shape[1:3]
        values = math.prod(windows.shape[3:])
        per_image = max(16, PATCHES_PER_VALUE * values // FIT_IMAGES)
        step = max(1, math.isqrt(rows * columns // per_image))
        row, column = self.generator.integers(min(step, rows)), self.generator.integers(min(step, columns))
        return windows[:, row::step, column::step].reshape(-1, values)


def all_patches(inputs: np.ndarray, layer: Layer) -> np.ndarray:
    """Return a view of the inputs of each output position, (images, rows, columns, channels, *kernel_size).

    Args:
        inputs: of the layer, (images, height, width, channels).
        layer: gives kernel size, strides, dilation and padding.
    """
    reach = [(size - 1) * rate + 1 for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    if layer.padding == "same":
        # As in TensorFlow: ceil(side / stride) outputs; the odd pixel of padding goes to the bottom and the right.
        margins = [
            max(0, (-(-side // stride) - 1) * stride + extent - side)
            for side, stride, extent in zip(inputs.shape[1:3], layer.strides, reach, strict=True)
        ]
        inputs = np.pad(inputs, ((0, 0), *((margin // 2, margin - margin // 2) for margin in margins), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(inputs, reach, axis=(1, 2))
    (row_stride, column_stride), (row_rate, column_rate) = layer.strides, layer.dilation_rate
    return windows[:, ::row_stride, ::column_stride, :, ::row_rate, ::column_rate]


def gather(
    statistics: Mapping[str, Statistics],
    prefix: keras.Model,
    images: Iterable[Any],
    needed: Mapping[str, tuple[bool, bool]],
) -> None:
    """Add the inputs and outputs of layers on these images to the layers' statistics.

    Args:
        statistics: by layer; updated in place.
        prefix: from images to each layer's input and output (see `graph.truncate`).
        images: batches of images.
        needed: by layer, whether inputs and whether outputs are needed (see `statistics_needed`).
    """
    for batch in images:
        watchdog.touch()
        activations = prefix.predict_on_batch(batch)
        for name, layer_statistics in statistics.items():
            inputs, outputs = activations[name]
            needs_inputs, needs_targets = needed[name]
            if needs_inputs:
                layer_statistics.add_inputs(np.asarray(inputs, np.float32))
            if needs_targets:
                layer_statistics.add_targets(np.asarray(outputs, np.float32))
