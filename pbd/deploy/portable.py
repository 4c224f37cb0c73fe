"""The form in which a network is exported: flat, in float32, rewritten for inference, of layers that exporters know."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from pbd.deploy import inference_form
from pbd.networks import graph


def portable(model: keras.Model, int8: bool = False, runs_in_tensorflow: bool = True) -> keras.Model:
    """Return a copy of a network that every exporter can read; it computes the same outputs in float32.

    Args:
        model: flat and functional, in float32.
        int8: whether it will be quantised to 8-bit integers.
        runs_in_tensorflow: whether TensorFlow may compile it, or converters alone (see `folding.find_foldable`).
    """
    network = inference_form.fold(model, int8, runs_in_tensorflow)
    grouped = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1]
    return graph.swap(network, {layer.name: _Ungrouped(layer) for layer in grouped}) if grouped else network


def as_function(network: keras.Model) -> Any:
    """Return the inference pass of a network as a TensorFlow function of one tensor `image`, for any batch size.

    Weights are constants of its graph, and so are the tensors that layers keep beside their weights, such as the mean
    of a normalisation: exporters would make inputs of them, or lose them.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32, name="image")]

    def infer(image: Any) -> Any:
        return network(image, training=False)

    traced = tf.function(infer, input_signature=signature, jit_compile=False, autograph=False)
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function())
    return tf.function(lambda image: frozen(image)[0], input_signature=signature, autograph=False)


class _Ungrouped:
    """Builds a grouped convolution of convolutions with one group, or as a depthwise convolution.

    Keras wraps grouped convolutions in a compiled function, which exporters cannot read.
    """

    def __init__(self, layer: keras.layers.Conv2D) -> None:
        self._layer = layer
        self._built = dict[str, Any]()  # by name; all calls of the layer share them
        self._axis = -1 if layer.data_format == "channels_last" else 1
        self._config = {
            name: value
            for name, value in layer.get_config().items()
            if name in ("strides", "padding", "data_format", "dilation_rate", "use_bias", "kernel_size", "dtype")
        }

    def __call__(self, x: Any) -> Any:
        layer = self._layer
        y = self._depthwise(x) if layer.groups == x.shape[self._axis] else self._split(x)
        build = functools.partial(keras.layers.Activation, layer.activation, dtype=layer.dtype_policy)
        return self._shared("activation", build)(y)

    def _shared(self, suffix: str, build: Callable[..., Any]) -> Any:
        """Return the layer with this suffix to its name, built with the first call."""
        name = f"{self._layer.name}_{suffix}"
        if name not in self._built:
            self._built[name] = build(name=name)
        return self._built[name]

    def _depthwise(self, x: Any) -> Any:
        kernel, *bias = self._layer.get_weights()
        multiplier = kernel.shape[-1] // self._layer.groups
        build = functools.partial(keras.layers.DepthwiseConv2D, depth_multiplier=multiplier, **self._config)
        layer = self._shared("depthwise", build)
        y = layer(x)
        layer.set_weights([kernel.reshape(*kernel.shape[:2], self._layer.groups, multiplier), *bias])
        return y

    def _split(self, x: Any) -> Any:
        groups = self._layer.groups
        weights = zip(*(np.split(weight, groups, axis=-1) for weight in self._layer.get_weights()), strict=True)
        parts = []
        for number, (part, arrays) in enumerate(zip(keras.ops.split(x, groups, self._axis), weights, strict=True)):
            build = functools.partial(keras.layers.Conv2D, self._layer.filters // groups, **self._config)
            layer = self._shared(f"group{number}", build)
            parts.append(layer(part))
            layer.set_weights(list(arrays))
        join = functools.partial(keras.layers.Concatenate, self._axis, dtype=self._layer.dtype_policy)
        return self._shared("groups", join)(parts)
