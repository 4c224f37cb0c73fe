"""The form in which a network with fake quantisation is exported."""

from typing import Any

import keras

from pbd.deploy.int8.fake_quantization import FakeQuantize, RoundedKernels
from pbd.networks import graph
from pbd.networks.keras_internals import walk


class _TensorFlowFakeQuantize(keras.layers.Layer):
    """Rounds activations by the operation of TensorFlow that exporters know."""

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__(dtype="float32")
        self._limits = limits

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.quantization.fake_quant_with_min_max_args(x, *self._limits, num_bits=8)


def exportable(network: keras.Model, rounds_activations: bool = True) -> keras.Model:
    """Return a network that computes the same outputs from rounded kernels and biases, with operations of TensorFlow.

    Args:
        network: a network of `fake_quantization.fake_quantized`; the new network shares the layers that are not
            rounded.
        rounds_activations: whether activations are rounded, too; else the network has layers of Keras alone.
    """
    rounded: list[tuple[keras.Layer, RoundedKernels]] = []
    copies: dict[int, keras.Layer] = {}

    def copy(operation: RoundedKernels) -> keras.Layer:
        # The step of a bias is that of its input, so each call of a shared layer has a rounded bias of its own.
        key = id(operation if rounds_activations else operation.layer)
        if key not in copies:
            is_taken = any(layer.name == operation.layer.name for layer in copies.values())
            config = operation.layer.get_config() | ({"name": operation.name} if is_taken else {})
            copies[key] = type(operation.layer).from_config(config)
            rounded.append((copies[key], operation))
        return copies[key]

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(operation, FakeQuantize):
            return _TensorFlowFakeQuantize(operation.range)(*args) if rounds_activations else args[0]
        if isinstance(operation, RoundedKernels):
            return copy(operation)(*args)
        return operation(*args, **graph.in_mode(operation, False, kwargs))

    inputs = keras.Input(network.inputs[0].shape[1:], name=network.inputs[0].name)
    outputs = keras.tree.flatten(walk(network, inputs, call))[0]
    for layer, operation in rounded:  # built by now
        layer.set_weights(operation.layer.get_weights())
        layer.kernel.assign(operation.rounded_kernel())
        if layer.use_bias:
            layer.bias.assign(operation.rounded_bias())
    return keras.Model(inputs, outputs, name=network.name)
