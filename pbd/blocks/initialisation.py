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
from pbd.blocks.patches import all_patches
from pbd.blocks.seeds import derive_seed
from pbd.records import BlockKey, BlockTask, Layer, Progress, ProgressCallback, no_progress
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
        activations: per layer, bytes of its input and output on a batch.
        moments: per layer, `moment_bytes`; 0 if the initialisation of its blocks does not use inputs.
    """
    if not any(moments):
        return 0
    # All moments are gathered in one pass. Then the blocks are fitted one after the other, in float64.
    return sum(moments) + max(GATHER_COPIES * sum(activations), 2 * FIT_COPIES * max(moments))


@dataclass(frozen=True)
class Needs:
    """The statistics that closed-form initialisation uses."""

    inputs: bool = False
    """The moments of the layer's input patches."""
    targets: bool = False
    """Mean and deviation of its outputs."""
    pairs: bool = False
    """The covariance of input patches and outputs."""

    @classmethod
    def of(cls, design: BlockDesign, block_init: str) -> "Needs":
        """Return the needs of a design if blocks are initialised by `block_init` (see `BlockConfig`)."""
        if block_init == "noise":
            return cls()
        fitted = block_init == "fitted"
        # What needs pairs replaces a residual block, which has no kernel.
        return cls(design.needs_inputs and fitted, design.needs_targets, design.needs_pairs)

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(self.inputs or other.inputs, self.targets or other.targets, self.pairs or other.pairs)

    def __bool__(self) -> bool:
        return self.inputs or self.targets or self.pairs


def initialise(
    built: Mapping[BlockKey, keras.Model],
    tasks: Iterable[BlockTask],
    designs: Mapping[str, BlockDesign],
    teacher: keras.Model,
    prefix: keras.Model,
    images: Iterable[Any],
    block_init: str,
    seed: int,
    emit: ProgressCallback = no_progress,
) -> None:
    """Set the weights of several blocks in closed form, in place.

    Args:
        built: the blocks, with random weights; all blocks of a layer use the same statistics.
        tasks: their tasks.
        designs: the tasks' designs by name.
        teacher: holds the kernels.
        prefix: a model from images to each layer's input and output (see `graph.truncate`).
        images: batches of training images, read once, and only if a design needs statistics.
        block_init: `noise` (keep random weights), `kernel` or `fitted` (see `BlockConfig`).
        seed: the run's.
        emit: called with the number of images read, then with the number of blocks that have their weights.
    """
    if block_init == "noise":
        return
    tasks = list(tasks)
    needed: dict[str, Needs] = {}
    for task in tasks:
        needed[task.layer.name] = needed.get(task.layer.name, Needs()) | Needs.of(designs[task.design], block_init)
    statistics = {task.layer.name: Statistics.empty(task.layer, seed) for task in tasks if needed[task.layer.name]}
    if statistics:
        gather(statistics, prefix, images, needed, emit)
    operations = {operation.name: operation for operation in teacher.operations}  # `+` is no layer
    for number, task in enumerate(tasks):
        name, design = task.layer.name, designs[task.design]
        emit(Progress(0, "fitting blocks", number, len(tasks)))
        kernel = layer_kernel(operations[name])
        shown = _shown(statistics.get(name), Needs.of(design, block_init))
        design.initialise(built[task.key], task.layer, kernel, shown)


def _shown(statistics: "Statistics | None", needs: Needs) -> "Statistics | None":
    """Return the statistics that a design needs, so that it starts the same with other designs and alone."""
    if statistics is None or not needs:
        return None
    return statistics if needs.inputs or needs.pairs else replace(statistics, patches=0)


def initial_factors(
    kernel: LayerKernel, statistics: "Statistics | None", rank: int, use_bias: bool
) -> tuple[Factors, np.ndarray]:
    """Return the kernel's factors of this rank, and the bias that minimises the error with them.

    Without statistics of inputs the factors approximate the kernel itself; with them, the layer's output.

    Args:
        kernel: the kernel of the layer.
        statistics: the statistics of the layer, or None.
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


def layer_kernel(layer: Any) -> LayerKernel:
    """Return the trained weights of a convolution; those of any other operation are empty."""
    if not isinstance(layer, keras.layers.Conv2D):
        return LayerKernel(np.zeros((0, 0, 0)), np.zeros(0))
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
    images: int = 0
    """Images whose outputs were added so far."""
    targets: Any = 0.0
    """Sum over images of the output's mean, (channels,)."""
    squares: Any = 0.0
    """Sum over images of the mean squared output, (channels,)."""
    target_centre: Any = 0.0
    """Mean output of the first batch at the positions of the patches, (channels,)."""
    target_first: Any = 0.0
    """Sum of t - target_centre over outputs t at the positions of the patches, (channels,)."""
    cross: Any = 0.0
    """Sum of (p - centre)(t - target_centre)^T over patches p and their outputs t, (values, channels)."""

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
        return self.targets / self.images

    @property
    def target_deviation(self) -> np.ndarray:
        """Standard deviation of the layer's output, (channels,)."""
        return np.sqrt(np.maximum(self.squares / self.images - self.target_mean**2, 0.0))

    @property
    def paired_target_mean(self) -> np.ndarray:
        """Mean of the outputs at the positions of the patches, (channels,)."""
        return self.target_centre + np.asarray(self.target_first, np.float64) / self.patches

    @property
    def cross_covariance(self) -> np.ndarray:
        """Covariance of patches and outputs, (values, channels)."""
        shifts = (np.asarray(each, np.float64) / self.patches for each in (self.first, self.target_first))
        return np.asarray(self.cross, np.float64) / self.patches - np.outer(*shifts)

    def add_inputs(self, inputs: np.ndarray, outputs: np.ndarray | None = None) -> None:
        """Add the patches of a batch of the layer's inputs and, for their covariance, its outputs.

        Args:
            inputs: (images, height, width, channels).
            outputs: likewise.
        """
        places = self._some_places(inputs)
        patches = all_patches(inputs, self.layer)[places]
        patches = patches.reshape(-1, math.prod(patches.shape[3:]))
        if not self.patches:
            self.centre = patches.mean(axis=0, dtype=np.float64).astype(patches.dtype)
        patches = patches - self.centre
        if outputs is not None:
            self._add_pairs(patches, outputs[places].reshape(-1, outputs.shape[-1]))
        self.patches += len(patches)
        self.first = self.first + patches.sum(axis=0)
        self.second = self.second + patches.T @ patches

    def _add_pairs(self, patches: np.ndarray, targets: np.ndarray) -> None:
        if not self.patches:
            self.target_centre = targets.mean(axis=0, dtype=np.float64).astype(targets.dtype)
        targets = targets - self.target_centre
        self.target_first = self.target_first + targets.sum(axis=0)
        self.cross = self.cross + patches.T @ targets

    def add_targets(self, outputs: np.ndarray) -> None:
        """Add a batch of the layer's outputs, (images, height, width, channels)."""
        self.images += len(outputs)
        self.targets = self.targets + outputs.mean(axis=(1, 2), dtype=np.float64).sum(axis=0)
        self.squares = self.squares + np.square(outputs).mean(axis=(1, 2), dtype=np.float64).sum(axis=0)

    def _some_places(self, inputs: np.ndarray) -> tuple[slice, slice, slice]:
        """Return the output positions on a regular grid with a random offset, as an index of (images, rows, columns).

        The random offset makes all positions equally likely, borders included.
        """
        windows = all_patches(inputs, self.layer)
        rows, columns = windows.shape[1:3]
        values = math.prod(windows.shape[3:])
        per_image = max(16, PATCHES_PER_VALUE * values // FIT_IMAGES)
        step = max(1, math.isqrt(rows * columns // per_image))
        row, column = self.generator.integers(min(step, rows)), self.generator.integers(min(step, columns))
        return slice(None), slice(row, None, step), slice(column, None, step)


def gather(
    statistics: Mapping[str, Statistics],
    prefix: keras.Model,
    images: Iterable[Any],
    needed: Mapping[str, Needs],
    emit: ProgressCallback = no_progress,
) -> None:
    """Add the inputs and outputs of layers on these images to the layers' statistics.

    Args:
        statistics: the statistics by layer; updated in place.
        prefix: a model from images to each layer's input and output (see `graph.truncate`).
        images: batches of images.
        needed: by layer, what is needed.
        emit: called with the number of images read.
    """
    count = 0
    for batch in images:
        watchdog.touch()
        emit(Progress(0, "gathering statistics of layers", count, 0))
        count += len(batch)
        activations = prefix.predict_on_batch(batch)
        for name, layer_statistics in statistics.items():
            inputs, outputs = activations[name]
            needs = needed[name]
            if needs.targets or needs.pairs:
                outputs = np.asarray(outputs, np.float32)
            if needs.inputs or needs.pairs:
                layer_statistics.add_inputs(np.asarray(inputs, np.float32), outputs if needs.pairs else None)
            if needs.targets:
                layer_statistics.add_targets(outputs)
