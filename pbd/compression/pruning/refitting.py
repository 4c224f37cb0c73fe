"""Refit a network without some of its channels, by least squares, to what it computed before.

The refit of `pbd.student.refit` compares two networks with the same feature maps. So the student here has all channels;
its layers read only those that remain. Dense layers are 1x1 convolutions in both networks, which are refitted too.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.compression.pruning.selection import Kept
from pbd.networks import channels, graph
from pbd.networks.keras_internals import call_counts
from pbd.student.adaptation import Adapted

MOST_INPUTS = 8192
"""A dense layer with more inputs is not refitted: the second moment of its inputs would take too much memory."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """A network without some of its channels, refitted."""

    model: keras.Model
    layers: tuple[str, ...]
    """Layers that read fewer channels than before, and were refitted first of all."""
    others: tuple[str, ...]
    """Layers that read fewer channels, and cannot be refitted."""
    adapted: Adapted | None
    """None if no layer was refitted."""

    def events(self) -> Iterator[str]:
        """Yield what is not refitted, as a sentence of the report."""
        if self.others:
            yield (
                f"not refitted: {', '.join(self.others)} (no plain convolution that is called once, and no dense layer "
                f"of at most {MOST_INPUTS} inputs)"
            )


Adapt = Callable[[keras.Model, keras.Model, Mapping[str, str]], Adapted]
"""Adapts a student, in place, to a teacher; the third argument is `ends` (see `adaptation.adapt`)."""


def remove_and_refit(model: keras.Model, kept: Kept, adapt: Adapt) -> Refitted:
    """Return a copy of a network without some of its channels, whose layers make up for that as far as they can.

    All convolutions and dense layers behind the first one that reads fewer channels are corrected in order, and batch
    statistics are estimated again. If refitting does not bring the network closer to the one before, it keeps its
    kernels, with the new statistics.

    Args:
        model: flat and functional.
        kept: by group, the channels that remain.
        adapt: refits it on the training images.
    """
    lists = {name: each.tolist() for name, each in kept.items()}
    whole = channels.masked(model, lists)
    left, counts = _positions_left(model, kept), call_counts(model)
    others = tuple(each.name for each in left if counts[id(each)] > 1 or not _can_be_refitted(each))
    positions = {each.name: positions for each, positions in left.items() if each.name not in others}
    student = _as_convolutions(whole, positions)
    if not positions:
        return Refitted(channels.remove(whole, lists), (), others, None)
    adapted = adapt(student, _as_convolutions(model, {}), {name: name for name in positions})
    for layer in whole.layers:
        if layer.weights:
            layer.set_weights(_weights(layer, student.get_layer(layer.name), positions.get(layer.name)))
    return Refitted(channels.remove(whole, lists), tuple(positions), others, adapted)


def _positions_left(model: keras.Model, kept: Kept) -> Mapping[keras.Layer, np.ndarray]:
    """Return, by layer that loses inputs, the positions of the others."""
    lost, widths = dict[keras.Layer, np.ndarray](), dict[keras.Layer, int]()
    for each in channels.find_placements(model).readers:
        if each.group in kept:
            of_group = each.positions[~np.isin(each.channels, kept[each.group])]
            lost[each.layer] = np.union1d(lost.get(each.layer, np.zeros(0, int)), of_group)
            widths[each.layer] = each.width
    return {layer: np.setdiff1d(np.arange(widths[layer]), each) for layer, each in lost.items() if len(each)}


def _can_be_refitted(layer: keras.Layer) -> bool:
    if type(layer) is keras.layers.Conv2D:
        return layer.groups == 1 and layer.data_format == "channels_last"
    return type(layer) is keras.layers.Dense and len(layer.kernel.shape) == 2 and _is_small(layer)


def _is_small(layer: keras.layers.Dense) -> bool:
    return len(layer.input.shape) in (2, 4) and layer.kernel.shape[0] <= MOST_INPUTS


def _as_convolutions(model: keras.Model, positions: Mapping[str, np.ndarray]) -> keras.Model:
    """Return a copy of a network whose dense layers are convolutions, and where some layers read a part of their input.

    Args:
        model: flat and functional.
        positions: by layer, the input channels that it reads; all layers that are not named read all.
    """
    counts = call_counts(model)
    builders: dict[str, Callable[[Any], Any]] = {}
    for layer in model.layers:
        is_dense = type(layer) is keras.layers.Dense
        if layer.name in positions or (is_dense and counts[id(layer)] == 1 and _can_be_refitted(layer)):
            builders[layer.name] = functools.partial(_build, layer, positions.get(layer.name))
    return graph.swap(model, builders)


def _build(layer: Any, positions: np.ndarray | None, x: Any) -> Any:
    """Return the output of the convolution of the same name that computes what a layer does."""
    kernel, *bias = layer.get_weights()
    kernel = kernel.reshape(*(1, 1)[: 4 - kernel.ndim], *kernel.shape)
    is_flat = len(x.shape) == 2
    if positions is not None:
        x, kernel = keras.ops.take(x, positions.tolist(), axis=-1), kernel[:, :, positions]
    if is_flat:
        x = keras.layers.Reshape((1, 1, kernel.shape[2]), dtype=layer.dtype_policy)(x)
    convolution = keras.layers.Conv2D.from_config(_config(layer))
    y = convolution(x)
    convolution.set_weights([kernel, *bias])
    return keras.layers.Reshape((kernel.shape[3],), dtype=layer.dtype_policy)(y) if is_flat else y


def _config(layer: Any) -> dict[str, Any]:
    """Return the configuration of a layer as a convolution."""
    config = layer.get_config()
    if type(layer) is keras.layers.Conv2D:
        return config
    names = ("name", "dtype", "trainable", "use_bias", "activation")
    return {name: config[name] for name in names} | {"filters": layer.units, "kernel_size": 1}


def _weights(layer: Any, refitted: Any, positions: np.ndarray | None) -> list[np.ndarray]:
    """Return the weights of a layer, with zeros where it reads channels that do not remain."""
    weights = refitted.get_weights()
    if positions is None:
        return [value.reshape(weight.shape) for value, weight in zip(weights, layer.weights, strict=True)]
    kernel = np.zeros(layer.kernel.shape, np.float32)
    kernel[..., positions, :] = weights[0].reshape(*kernel.shape[:-2], len(positions), -1)
    return [kernel, *weights[1:]]
