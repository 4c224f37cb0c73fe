"""The weights that unstructured pruning sets to zero: which kernels have them, and which of them remain."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.config import patterns
from pbd.errors import BadInputError
from pbd.networks.keras_internals import KERNELS, calls

FLOOR = 0.01
"""Least share of each kernel that remains where kernels are compared: a layer without weights passes nothing on."""
_LAYERS = (
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
Masks = Mapping[str, np.ndarray]
"""By name of a kernel, whether each weight remains."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of a layer."""

    layer: keras.Layer
    variable: Any

    @property
    def name(self) -> str:
        """The name of the layer, and of the kernel if the layer has two."""
        return self.layer.name if self.variable.name == "kernel" else f"{self.layer.name}/{self.variable.name}"

    @property
    def values(self) -> np.ndarray:
        """The weights."""
        return keras.ops.convert_to_numpy(self.variable)


def find_kernels(model: keras.Model, layers: Sequence[str] = (), prune_classifier: bool = False) -> list[Kernel]:
    """Return the kernels to prune, in graph order.

    Args:
        model: flat and functional.
        layers: patterns of the layers.
        prune_classifier: whether the last dense layer is pruned, too: each one without another kernel behind it.

    Raises:
        UsageError: a pattern matches no layer.
        BadInputError: no kernel is left.
    """
    found_layers = list(
        {id(operation): operation for operation, _, _ in calls(model) if isinstance(operation, _LAYERS)}.values()
    )
    patterns.check(layers, [layer.name for layer in found_layers])
    spared = set[str]() if prune_classifier else _classifiers(model)
    selected = [layer for layer in found_layers if patterns.selects(layers, layer.name) and layer.name not in spared]
    kernels = [Kernel(layer, each) for layer in selected for each in layer.weights if each.name in KERNELS]
    if not kernels:
        raise BadInputError(
            "a network must have kernels to prune. Received: none besides the last dense layer. "
            "Give other layers, or prune_classifier."
        )
    return kernels


def _classifiers(model: keras.Model) -> set[str]:
    """Return the names of the dense layers behind which no kernel comes; an ensemble has several."""
    read_by_kernels, names = set[int](), set[str]()
    for operation, inputs, outputs in reversed(list(calls(model))):
        has_kernel = isinstance(operation, _LAYERS)
        leads_to_kernel = any(id(tensor) in read_by_kernels for tensor in outputs)
        if isinstance(operation, keras.layers.Dense) and not leads_to_kernel:
            names.add(operation.name)
        if has_kernel or leads_to_kernel:
            read_by_kernels.update(map(id, inputs))
    return names


def in_each_kernel(scores: Mapping[str, np.ndarray], share: float) -> Masks:
    """Return masks that remove the same share of each kernel: the lowest scores, of equal ones the last.

    At least one weight of each kernel remains.

    Args:
        scores: the scores of each kernel, in its shape.
        share: the share to remove.
    """
    left = {name: max(1, values.size - round(share * values.size)) for name, values in scores.items()}
    return {name: _highest(values, left[name]) for name, values in scores.items()}


def over_all_kernels(scores: Mapping[str, np.ndarray], share: float) -> Masks:
    """Return masks that remove a share of all weights: the lowest scores of the network.

    At least the share `FLOOR` of each kernel remains.

    Args:
        scores: the scores of each kernel, in its shape.
        share: the share to remove.
    """
    protected = [_highest(values, max(1, math.ceil(FLOOR * values.size))) for values in scores.values()]
    together = np.concatenate(
        [np.where(mask, np.inf, values).ravel() for mask, values in zip(protected, scores.values(), strict=True)]
    )
    least = sum(int(mask.sum()) for mask in protected)
    mask = _highest(together, max(least, together.size - round(share * together.size)))
    parts = np.split(mask, np.cumsum([values.size for values in scores.values()])[:-1])
    return {name: part.reshape(values.shape) for (name, values), part in zip(scores.items(), parts, strict=True)}


SCOPES = {"layer": in_each_kernel, "global": over_all_kernels}


def magnitudes(kernels: Iterable[Kernel]) -> dict[str, np.ndarray]:
    """Return the absolute values of kernels (Han et al. 2015, arXiv:1506.02626)."""
    return {kernel.name: np.abs(kernel.values) for kernel in kernels}


def shuffled(masks: Masks, seed: int) -> Masks:
    """Return masks that keep the same number of weights per kernel, at random positions.

    Args:
        masks: the number of kept weights per kernel.
        seed: the positions depend on it and on the names of the kernels.
    """
    draws = {name: np.random.default_rng(blocks.derive_seed(seed, "mask", name)) for name in masks}
    return {name: draws[name].permutation(mask.ravel()).reshape(mask.shape) for name, mask in masks.items()}


def apply(kernels: Iterable[Kernel], masks: Masks) -> None:
    """Set the weights that do not remain to zero, in place."""
    for kernel in kernels:
        kernel.variable.assign(np.where(masks[kernel.name], kernel.values, np.float32(0)))


def draw_anew(model: keras.Model, seed: int) -> None:
    """Draw all kernels again (He et al. 2015, arXiv:1502.01852), and reset biases and normalisations, in place.

    Args:
        model: flat and functional; weights of other names, such as those of a `Normalization`, stay as they are.
        seed: the weights depend on it and on the names of the layers.
    """
    constants = {"bias": 0.0, "beta": 0.0, "gamma": 1.0, "moving_mean": 0.0, "moving_variance": 1.0}
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in KERNELS:
                draws = np.random.default_rng(blocks.derive_seed(seed, "weights", layer.name, weight.name))
                weight.assign(draws.normal(0.0, math.sqrt(2.0 / _inputs(layer, weight)), weight.shape))
            elif weight.name in constants:
                weight.assign(np.full(weight.shape, constants[weight.name], np.float32))


def _inputs(layer: keras.Layer, kernel: Any) -> int:
    """Return the number of inputs of each output of a kernel."""
    if kernel.name == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D):
        return math.prod(kernel.shape[:2])
    if isinstance(layer, keras.layers.Conv2DTranspose):  # (height, width, outputs, inputs)
        return math.prod(kernel.shape) // kernel.shape[2]
    return math.prod(kernel.shape[:-1])


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the highest values, of equal ones the first."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return mask.reshape(values.shape)
