"""Scales of the preprocessing of images, folded into the kernels that read the images.

Some runtimes fold them as they convert a network: its first kernel is then neither the one that was rounded nor the one
that was to stay in float32. Networks that are trained for 8-bit integers keep their scales, since the steps of Adam
suit kernels of the usual size.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from pbd.deploy.runtimes.base import KERNEL_LIMIT, SMALLEST_SCALE
from pbd.networks import fusion, graph
from pbd.networks.cost import layer_calls

_READERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
"""Layers with a kernel for each input channel; exact types only, since a subclass may compute something else."""
_WIDEST = 4.0
"""The largest ratio of the scales of two channels: a kernel is rounded in equal steps for all its input channels."""


def folded(network: keras.Model) -> keras.Model:
    """Return a network that computes the same without multiplying its images by anything.

    Args:
        network: flat, functional and in float32; returned itself if anything but convolutions reads its preprocessed
            images, or if their kernels could be rounded less well.
    """
    users = fusion.consumers(network)
    once = {layer.name for layer, count in layer_calls(network) if count == 1}
    chain = list(_preprocessing(network, users, once))
    readers = list(_readers(chain[-1][0].output, users)) if chain else []
    if not all(_reads_channels(each) and each.name in once for each in readers):
        return network
    scale, shift = np.ones(1), np.zeros(1)
    for _, factor, summand in chain:
        scale, shift = scale * factor, shift * factor + summand
    scaled = {layer.name: (layer.get_weights()[0] * scale[:, None]).astype(np.float32) for layer in readers}
    smallest, largest = np.abs(scale).min(), np.abs(scale).max()
    if smallest == 0 or largest > _WIDEST * smallest or (scale == 1).all():
        return network
    if not all(map(_can_be_rounded, readers, scaled.values())):
        return network
    builders: dict[str, graph.Builder] = {layer.name: lambda images: images for layer, *_ in chain}
    last, channels = chain[-1][0].name, network.inputs[0].shape[-1]
    if shift.any():
        mean = np.broadcast_to(-shift / scale, (channels,)).tolist()
        builders[last] = keras.layers.Normalization(mean=mean, variance=[1.0] * channels, dtype="float32", name=last)
    elif not keras.backend.is_float_dtype(network.inputs[0].dtype):
        builders[last] = keras.layers.Rescaling(1.0, dtype="float32", name=last)  # converts the images
    copy = graph.swap(network, builders)
    for name, kernel in scaled.items():
        layer = copy.get_layer(name)
        layer.set_weights([kernel, *layer.get_weights()[1:]])
    return copy


def _preprocessing(
    network: keras.Model, users: fusion.Consumers, once: set[str]
) -> Iterator[tuple[keras.Layer, np.ndarray, np.ndarray]]:
    """Yield the layers that images pass first, one behind another, each with its scale and its shift."""
    tensor = network.inputs[0]
    while len(users[id(tensor)]) == 1:
        ((layer, _),) = users[id(tensor)]
        affine = _affine_map(layer) if layer.name in once else None
        if affine is None:
            return
        yield layer, *affine
        tensor = layer.output


def _affine_map(layer: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the scale and the shift of a layer, each one number or one for each channel; `None` for other layers."""
    if type(layer) is keras.layers.Rescaling:
        scale, shift = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    elif type(layer) is keras.layers.Normalization and not layer.invert:
        mean, variance = (keras.ops.convert_to_numpy(each).astype(np.float64) for each in (layer.mean, layer.variance))
        scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        shift = -mean * scale
    else:
        return None
    channels = layer.output.shape[-1]
    if any(
        (each.size > 1 and each.shape[-1] != each.size) or each.size not in (1, channels) for each in (scale, shift)
    ):
        return None
    return scale.ravel(), shift.ravel()


def _readers(tensor: Any, users: fusion.Consumers) -> Iterator[Any]:
    """Yield the operations that read a tensor, as it is or with a border of zeros."""
    for operation, outputs in users[id(tensor)]:
        if type(operation) is keras.layers.ZeroPadding2D and operation.data_format == "channels_last":
            yield from _readers(outputs[0], users)
        else:
            yield operation


def _reads_channels(operation: Any) -> bool:
    """Return whether an operation is a convolution whose kernel can take the scales of its input channels."""
    if type(operation) not in _READERS or operation.data_format != "channels_last":
        return False
    return type(operation) is keras.layers.DepthwiseConv2D or operation.groups == 1


def _can_be_rounded(layer: Any, kernel: np.ndarray) -> bool:
    """Return whether the scales of a kernel, with 8 bits for each output channel, are large enough for all runtimes."""
    axes = (0, 1) if type(layer) is keras.layers.DepthwiseConv2D else (0, 1, 2)
    largest = np.abs(kernel).max(axis=axes)
    return bool((largest[largest > 0] >= KERNEL_LIMIT * SMALLEST_SCALE).all())
