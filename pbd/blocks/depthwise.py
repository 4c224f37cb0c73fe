"""Common to all designs with depthwise filters: which layers they can replace, and for which they are slow."""

from pbd.records import Layer

FEWEST_CHANNELS = 8
"""Depthwise filters on fewer channels leave most of a vector unit idle; the stem of an RGB network has three."""


def cannot_replace(layer: Layer) -> str | None:
    """Return why depthwise filters cannot replace this layer, or None."""
    if layer.data_format == "channels_first":
        return "channels_first: convert the model to channels_last"
    if layer.strides[0] != layer.strides[1]:
        return f"strides {layer.strides} differ: TensorFlow has no such depthwise convolution"
    return None


def slow_for(layer: Layer) -> str | None:
    """Return why depthwise filters are slow for this layer, or None."""
    channels = layer.input_shape[-1]
    if channels < FEWEST_CHANNELS:
        return f"input channels: {channels}; depthwise filters are faster from {FEWEST_CHANNELS} on"
    return None
