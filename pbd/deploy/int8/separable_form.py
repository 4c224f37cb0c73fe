"""Separable convolutions as the two convolutions that runtimes compute."""

from collections.abc import Sequence

import keras

from pbd.networks import graph


def with_separate_convolutions(network: keras.Model) -> keras.Model:
    """Return a network with a depthwise and a pointwise convolution in the place of each separable one.

    Args:
        network: flat and functional; returned itself if it has no separable convolution.
    """
    layers = [layer for layer in network.layers if type(layer) is keras.layers.SeparableConv2D]
    if not layers:
        return network
    pairs = {layer.name: _separated(layer) for layer in layers}

    def builder(parts: Sequence[keras.Layer]) -> graph.Builder:
        return lambda x: parts[1](parts[0](x))

    separated = graph.swap(network, {name: builder(parts) for name, parts in pairs.items()})
    for layer in layers:
        depthwise, pointwise = pairs[layer.name]
        first, *rest = layer.get_weights()
        depthwise.set_weights([first])
        pointwise.set_weights(rest)
    return separated


def _separated(layer: keras.layers.SeparableConv2D) -> tuple[keras.Layer, keras.Layer]:
    """Return the depthwise and the pointwise convolution, not built."""
    shared = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        layer.strides,
        layer.padding,
        layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **shared,
    )
    return depthwise, keras.layers.Conv2D(
        layer.filters, 1, activation=layer.activation, use_bias=layer.use_bias, name=f"{layer.name}_pointwise", **shared
    )
