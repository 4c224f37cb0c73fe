"""Fold batch normalisations into the convolutions before them: the same outputs from fewer operations.

In inference mode a batch normalisation is an affine map per channel, y = s x + t, with s = gamma / sqrt(variance + eps)
and t = beta - s mean. Behind a linear layer it can be folded into the layer's kernel (times s) and bias (s bias + t).
"""

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from pbd.networks import fusion, graph
from pbd.networks.cost import layer_calls
from pbd.records import BlockKey

_LINEAR = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)
"""Layers that a normalisation can be folded into; exact types only, since a subclass may compute something else."""


def fold_around(
    model: keras.Model, built: Mapping[BlockKey, keras.Model]
) -> tuple[keras.Model, dict[BlockKey, keras.Model]]:
    """Return a folded copy of a network, and the blocks that replace layers of the copy.

    A layer of the copy computes what the layer and its normalisation computed before. A block that replaces it must
    therefore end with that normalisation.

    Args:
        model: flat and functional.
        built: blocks by layer and design.

    Returns:
        The copy, and each block, followed by the normalisation that was folded into the layer, if any.
    """
    flat = graph.flatten(model)
    foldable = find_foldable(flat)
    extended = {
        key: keras.Model(block.inputs[0], foldable[key.layer](block.outputs[0])) if key.layer in foldable else block
        for key, block in built.items()
    }
    return fold(flat, foldable), extended


def find_foldable(model: keras.Model, runs_in_tensorflow: bool = True) -> dict[str, keras.layers.BatchNormalization]:
    """Return, by layer name, each normalisation that can be folded into the layer before it.

    The layer must be linear, must be called once, and nothing but the normalisation may use its output.

    Args:
        model: flat and functional.
        runs_in_tensorflow: whether TensorFlow may compile the result: then the bias that the layer gets must not lead
            to a sum that it computes wrongly (see `fusion`).
    """
    calls = {operation.name: count for operation, count in layer_calls(model)}
    users = fusion.consumers(model)
    foldable = {}
    for layer in model.layers:
        if type(layer) not in _LINEAR or layer.activation is not keras.activations.linear or calls[layer.name] > 1:
            continue
        (user, _), *others = users[id(layer.output)]
        if others or not _is_foldable(user, calls, layer.output):
            continue
        if not (runs_in_tensorflow and fusion.misfused_behind(user.output, users)):
            foldable[layer.name] = user
    return foldable


def fold_all(model: keras.Model, runs_in_tensorflow: bool = True) -> keras.Model:
    """Return a copy of the model with all normalisations folded that can be; the model itself if there are none.

    Args:
        model: flat and functional.
        runs_in_tensorflow: see `find_foldable`.
    """
    # Folding a normalisation can expose another one behind it.
    while foldable := find_foldable(model, runs_in_tensorflow):
        model = fold(model, foldable)
    return model


def fold(model: keras.Model, foldable: Mapping[str, keras.layers.BatchNormalization]) -> keras.Model:
    """Return a copy of the model with these normalisations folded into the layers before them.

    Args:
        model: flat and functional.
        foldable: normalisations by the name of the layer before them (see `find_foldable`).
    """
    builders: dict[str, graph.Builder] = {normalisation.name: _unchanged for normalisation in foldable.values()}
    builders |= {
        name: functools.partial(_folded, model.get_layer(name), normalisation)
        for name, normalisation in foldable.items()
    }
    return graph.swap(model, builders)


def _unchanged(tensor: Any) -> Any:
    return tensor


def _folded(layer: keras.Layer, normalisation: keras.layers.BatchNormalization, tensor: Any) -> Any:
    """Return the output of a new layer that computes what layer and normalisation compute."""
    folded = type(layer).from_config({**layer.get_config(), "use_bias": True})
    output = folded(tensor)
    folded.set_weights(_folded_weights(layer, normalisation))
    return output


def _is_foldable(operation: Any, calls: Mapping[str, int], tensor: Any) -> bool:
    """Return whether an operation on `tensor` is a batch normalisation of the last axis that is called once."""
    if type(operation) is not keras.layers.BatchNormalization or calls[operation.name] > 1:
        return False
    return operation.axis in (-1, len(tensor.shape) - 1)


def _folded_weights(layer: keras.Layer, normalisation: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Return weights with which the layer alone computes what layer and normalisation compute; the bias comes last."""
    kernels = layer.get_weights()
    bias = kernels.pop() if layer.use_bias else np.zeros(normalisation.output.shape[-1], np.float32)
    statistics = normalisation.moving_mean, normalisation.moving_variance
    # float64, since scale and shift may cancel to a few digits
    mean, variance = (np.asarray(keras.ops.convert_to_numpy(value), np.float64) for value in statistics)
    scale = 1.0 / np.sqrt(variance + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * keras.ops.convert_to_numpy(normalisation.gamma)
    shift = -mean * scale
    if normalisation.center:
        shift = shift + keras.ops.convert_to_numpy(normalisation.beta)
    last = kernels[-1]  # of a separable convolution, the pointwise kernel: the last axis of each is the output channel
    # A depthwise kernel is (height, width, channels, multiplier), and its output channels are channels x multiplier.
    per_output = scale.reshape(last.shape[-2:]) if type(layer) is keras.layers.DepthwiseConv2D else scale
    return [*kernels[:-1], (last * per_output).astype(last.dtype), (bias * scale + shift).astype(bias.dtype)]
