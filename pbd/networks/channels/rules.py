"""Rules that trace the channels of an operation's output to those of its inputs, one for each kind of operation.

A rule returns the axis of the output's channels and their identities, or None if the operation may mix channels. Rules
hold for exact types, since a subclass may compute something else.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from pbd.networks.channels import kernels
from pbd.networks.channels.identities import Call, Identities

layers = keras.layers
Origin = tuple[int, np.ndarray] | None
Rule = Callable[[Identities, Call], Origin]
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")
"""The activations of Keras that compute a value from several."""


def follow(ids: Identities, call: Call) -> Origin:
    """Return the channel axis of the output and, per channel, the channel it comes from; `None` if channels may mix."""
    if len(call.tensors) > 1 or not kernels.has_known_weights(call.operation):
        return None
    origin = _rule_for(call.operation)(ids, call)
    return origin if origin and call.shape[origin[0]] == len(origin[1]) else None


def is_per_value(activation: Any) -> bool:
    """Return whether an activation function is one of Keras that computes each value from one value."""
    name = getattr(activation, "__name__", "")
    return getattr(keras.activations, name, None) is activation and name not in _MIXING


def channel_padding(call: Call) -> tuple[int, int]:
    """Return how many channels a `ZeroPadding2D` adds before and behind those of its input."""
    spatial = spatial_axis(call)
    return (0, 0) if spatial is None else call.operation.padding[spatial]


def indices(call: Call) -> np.ndarray | None:
    """Return the channels that a `keras.ops.take` of constant indices selects; `None` if the call is no such one."""
    if _rule_for(call.operation) is not _selected or len(call.inputs) != 1 or call.operation.axis is None:
        return None
    rank = len(call.input.shape)
    if call.operation.axis % rank != call.input.axis or len(call.shape) != rank:  # indices of several axes
        return None
    return np.asarray(call.constants, int).ravel() % len(call.input.ids)


def _rule_for(operation: Any) -> Rule:
    if isinstance(operation, keras.Layer):
        return _LAYERS.get(type(operation), _unknown)
    name = type(operation).__name__ if type(operation).__module__.startswith("keras.") else ""
    return _OPERATIONS.get(name, _unknown)


def _channel_axis(operation: Any, rank: int) -> int:
    return 1 if getattr(operation, "data_format", None) == "channels_first" else rank - 1


def spatial_axis(call: Call) -> int | None:
    """Return which spatial axis of a layer, 0 or 1, its input's channels lie along; None if they lie along neither."""
    spatial = call.input.axis - (2 if call.operation.data_format == "channels_first" else 1)
    return spatial if spatial in (0, 1) else None


def _unknown(_: Identities, call: Call) -> Origin:
    return None


def _same(_: Identities, call: Call) -> Origin:
    """Each value becomes one value."""
    activation = getattr(call.operation, "activation", keras.activations.linear)
    noise_shape = getattr(call.operation, "noise_shape", None)  # of dropout
    if noise_shape is not None and noise_shape[call.input.axis] not in (None, 1):
        return None
    return (call.input.axis, call.input.ids) if is_per_value(activation) else None


def _per_map(_: Identities, call: Call) -> Origin:
    """Each map becomes a map, or one value."""
    if call.input.axis != _channel_axis(call.operation, len(call.input.shape)):
        return None
    return _channel_axis(call.operation, len(call.shape)), call.input.ids


def _filtered(ids: Identities, call: Call) -> Origin:
    """Each output channel is computed from all input channels."""
    layer, axis = call.operation, _channel_axis(call.operation, len(call.shape))
    if call.input.axis != _channel_axis(layer, len(call.input.shape)) or getattr(layer, "groups", 1) > 1:
        return None
    filters = ids.make(layer, call.shape[axis] or 0)
    if not is_per_value(layer.activation):
        ids.fix(filters, f"the activation of {layer.name} may mix them")
    return axis, filters


def _depthwise(ids: Identities, call: Call) -> Origin:
    origin = _per_map(ids, call) if is_per_value(call.operation.activation) else None
    return origin and (origin[0], np.repeat(origin[1], call.operation.depth_multiplier))


def _normalised(_: Identities, call: Call) -> Origin:
    return (call.input.axis, call.input.ids) if call.operation.axis % len(call.shape) == call.input.axis else None


def _rescaled(_: Identities, call: Call) -> Origin:
    is_scalar = np.size(call.operation.scale) == np.size(call.operation.offset) == 1
    return (call.input.axis, call.input.ids) if is_scalar else None


def _padded(ids: Identities, call: Call) -> Origin:
    """Zero padding along the channel axis adds channels that are always zero."""
    before, behind = channel_padding(call)
    zeros = ids.make(call.operation, before + behind)
    return call.input.axis, np.concatenate([zeros[:before], call.input.ids, zeros[before:]])


def _cropped(_: Identities, call: Call) -> Origin:
    spatial = spatial_axis(call)
    return (call.input.axis, call.input.ids) if spatial is None or not any(call.operation.cropping[spatial]) else None


def _permuted(_: Identities, call: Call) -> Origin:
    return call.operation.dims.index(call.input.axis) + 1, call.input.ids


def _reshaped(_: Identities, call: Call) -> Origin:
    """Follow the channels if all values at any one position of some axis of the output have the same channel."""
    x = call.input
    sizes, new_sizes = ([size for size in shape[1:] if size is not None] for shape in (x.shape, call.shape))
    if len(sizes) < len(x.shape) - 1 or len(new_sizes) < len(call.shape) - 1:  # an open size
        return None
    everywhere = np.expand_dims(x.ids, [axis for axis in range(len(sizes)) if axis != x.axis - 1])
    everywhere = np.broadcast_to(everywhere, sizes)
    if getattr(call.operation, "data_format", None) == "channels_first":  # Flatten puts the channels last
        everywhere = np.moveaxis(everywhere, 0, -1)
    everywhere = everywhere.reshape(new_sizes)
    for axis in reversed(range(everywhere.ndim)):
        lines = np.moveaxis(everywhere, axis, 0).reshape(everywhere.shape[axis], -1)
        if (lines == lines[:, :1]).all():
            return axis + 1, lines[:, 0]
    return None


def _joined(_: Identities, call: Call) -> Origin:
    axis = call.operation.axis % len(call.shape)
    return (axis, np.concatenate([x.ids for x in call.inputs])) if all(x.axis == axis for x in call.inputs) else None


def _elementwise(ids: Identities, call: Call) -> Origin:
    """Unite the channels at each position; a tensor of one channel may be broadcast."""
    axes = {len(call.shape) - len(x.shape) + x.axis for x in call.inputs}
    widest = max(call.inputs, key=lambda x: len(x.ids))
    if (
        len(axes) > 1
        or call.shape[min(axes)] != len(widest.ids)
        or any(np.size(constant) != 1 for constant in call.constants)
    ):
        return None
    for x in call.inputs:
        if len(x.ids) == len(widest.ids):
            ids.unite(x.ids, widest.ids)
        else:
            ids.fix(x.ids, "it is broadcast over the channels of another tensor")
    return min(axes), widest.ids


def _selected(_: Identities, call: Call) -> Origin:
    selected = indices(call)
    return None if selected is None else (call.input.axis, call.input.ids[selected])


_SAME = (
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU, layers.Activation, layers.Identity),
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise, layers.ActivityRegularization),
)
_PER_MAP = (
    *(layers.AveragePooling2D, layers.MaxPooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
    *(layers.UpSampling2D, layers.Resizing, layers.SpatialDropout2D),
)
_MERGING = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
_LAYERS: Mapping[type, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_PER_MAP, _per_map),
    **dict.fromkeys(_MERGING, _elementwise),
    **dict.fromkeys(kernels.WIDTH, _filtered),
    layers.DepthwiseConv2D: _depthwise,
    layers.BatchNormalization: _normalised,
    layers.Rescaling: _rescaled,
    layers.ZeroPadding2D: _padded,
    layers.Cropping2D: _cropped,
    layers.Permute: _permuted,
    layers.Flatten: _reshaped,
    layers.Reshape: _reshaped,
    layers.Concatenate: _joined,
}
_FUNCTIONS = (
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "Silu", "HardSilu", "Tanh", "HardTanh", "Gelu"),
    *("Softplus", "Mish", "Abs", "Absolute", "Negative", "Exp", "Sqrt", "Square", "Clip", "Cast"),
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum"),
)
_OPERATIONS: Mapping[str, Rule] = {
    **dict.fromkeys(_FUNCTIONS, _elementwise),
    "Concatenate": _joined,
    "Take": _selected,
}
"""The rules by the name of the class, since Keras does not export these classes."""
