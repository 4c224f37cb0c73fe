"""Rewrite a finished student for inference: the same outputs from fewer operations, as runtimes like them best.

A batch normalisation behind a convolution becomes part of its kernel and bias. Then nothing hinders writing the
filtered maps of a decoupled block, which training keeps side by side, as separate pointwise convolutions that are
added: runtimes add while they convolve, but copy to concatenate (figures: `experiments/README.md`).
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from pbd.networks import graph

_FOLDS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)


Made = dict[str, tuple[keras.Layer, list[np.ndarray]]]
"""New layers by name, each with the weights it gets once it is built."""


def fold_around(model: keras.Model, built: Mapping[str, keras.Model]) -> tuple[keras.Model, dict[str, keras.Model]]:
    """Return a folded copy, and for each block what takes its layer's place there.

    Args:
        model: flat and functional.
        built: blocks by layer.

    Returns:
        The copy, and each block with the normalisation that its layer has taken in, if it has, behind it.
    """
    flat = graph.flatten(model)
    normalised = normalised_layers(flat)
    whole = {
        name: keras.Model(block.inputs, normalised[name](block.outputs[0])) if name in normalised else block
        for name, block in built.items()
    }
    return without_normalisations(flat, normalised), whole


def without_normalisations(model: keras.Model, normalised: dict[str, keras.layers.BatchNormalization]) -> keras.Model:
    folded, made = {normalisation.name for normalisation in normalised.values()}, Made()

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name in folded:
            return args[0]
        if operation.name not in normalised:
            return operation(*args, **kwargs)
        layer = type(operation).from_config({**operation.get_config(), "use_bias": True})
        made[layer.name] = layer, _folded(operation, normalised[operation.name])
        return layer(*args, **kwargs)

    return rebuilt(model, call, made)


def rebuilt(model: keras.Model, call: Callable[..., Any], made: Made) -> keras.Model:
    inputs = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype, name=model.inputs[0].name)
    outputs = keras.tree.flatten(graph.walk(model, inputs, lambda operation: operation, call))[0]
    for layer, weights in made.values():
        layer.set_weights(weights)
    return graph.flatten(keras.Model(inputs, outputs, name=model.name))


def normalised_layers(model: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """Return, by the name of the layer before it, each normalisation that is all that this layer feeds."""
    calls = {operation.name: count for operation, count in graph.layer_calls(model)}
    readers: dict[int, list[Any]] = collections.defaultdict(list)

    def look(operation: Any, *args: Any, **kwargs: Any) -> Any:
        for tensor in keras.tree.flatten((args, kwargs)):
            readers[id(tensor)].append(operation)
        return operation.output if calls.get(operation.name, 1) == 1 else operation(*args, **kwargs)

    ends = {id(tensor) for tensor in keras.tree.flatten(graph.walk(model, model.inputs, lambda same: same, look))}
    found = {}
    for layer in model.layers:
        if type(layer) not in _FOLDS or layer.activation is not keras.activations.linear or calls[layer.name] > 1:
            continue
        read_by = readers[id(layer.output)]
        if len(read_by) == 1 and id(layer.output) not in ends and _is_foldable(read_by[0], calls, layer.output):
            found[layer.name] = read_by[0]
    return found


def _is_foldable(operation: Any, calls: dict[str, int], tensor: Any) -> bool:
    if type(operation) is not keras.layers.BatchNormalization or calls[operation.name] > 1:
        return False
    return operation.axis in (-1, len(tensor.shape) - 1)


def _folded(layer: keras.Layer, normalisation: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Return the layer's weights, bias last, with which it gives what the normalisation makes of its output."""
    kernels = layer.get_weights()
    bias = kernels.pop() if layer.use_bias else np.zeros(normalisation.output.shape[-1], np.float32)
    statistics = normalisation.moving_mean, normalisation.moving_variance
    mean, variance = (np.asarray(keras.ops.convert_to_numpy(value), np.float64) for value in statistics)
    scale = 1.0 / np.sqrt(variance + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * keras.ops.convert_to_numpy(normalisation.gamma)
    shift = -mean * scale
    if normalisation.center:
        shift = shift + keras.ops.convert_to_numpy(normalisation.beta)
    last = kernels[-1]
    per_output = scale.reshape(last.shape[-2:]) if type(layer) is keras.layers.DepthwiseConv2D else scale
    return [*kernels[:-1], (last * per_output).astype(last.dtype), (bias * scale + shift).astype(bias.dtype)]
