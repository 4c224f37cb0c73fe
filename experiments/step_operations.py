"""Which operations a grouped training step is made of, each as a function that can be run alone.

The gradients of a convolution are separate operations. Of the other layers, what a gradient needs is what the forward
pass computes, so that both are one operation. A block's first layers need no gradient of their input.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from pbd.learning import loop
from pbd.learning.losses import squared_error
from pbd.networks import cost, graph
from pbd.networks.keras_internals import call_inputs

Shape = tuple[int, ...]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """Something that a step computes; two that are equal take equally long."""

    kind: str
    shapes: tuple[Shape, ...]
    """Of the tensors that the function takes."""
    function: Function = field(compare=False, repr=False)
    details: str = ""
    """What else decides how long it takes, such as strides."""


def count(teacher: keras.Model, built: Mapping[str, keras.Model], batch_size: int) -> Counter[Operation]:
    """Return the operations of a step that trains these blocks, and how often it has each."""
    found: Counter[Operation] = Counter()
    for layer, calls in cost.layer_calls(graph.truncate(teacher, built)):
        if not isinstance(layer, layers.InputLayer):
            found[of_teacher(layer, batch_size)] += calls
    for block in built.values():
        found.update(of_block(block, batch_size))
    variables = [variable for block in built.values() for variable in block.trainable_variables]
    found[of_optimizer(variables)] += 1
    return found


def of_teacher(layer: keras.Layer, batch_size: int) -> Operation:
    """Return the forward pass of a frozen layer."""
    name = type(layer).__name__
    if isinstance(layer, layers.Conv2D):
        name += " " + "x".join(map(str, layer.kernel_size))
    shapes = _input_shapes(layer, batch_size)
    return Operation(f"teacher: {name}", shapes, lambda *inputs: layer(_as_given(inputs)), _details(layer))


def of_block(block: keras.Model, batch_size: int) -> Iterator[Operation]:
    """Yield the operations of one block: its layers, forward and backward, and its error."""
    for layer in block.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        first = any(source is block.inputs[0] for source in keras.tree.flatten(layer.input))
        yield from _of_layer(layer, batch_size, inner=not first)
    output = (batch_size, *block.output_shape[1:])
    yield Operation("squared error and gradient", (output, output), _error_and_gradient)


def _of_layer(layer: keras.Layer, batch_size: int, inner: bool) -> Iterator[Operation]:
    if isinstance(layer, layers.DepthwiseConv2D):
        yield from _depthwise(layer, batch_size, inner)
    elif isinstance(layer, layers.SeparableConv2D):
        filtered = (batch_size, *layer.output.shape[1:3], layer.input.shape[-1])
        yield from _depthwise(layer, batch_size, inner)
        yield from _pointwise(filtered, layer.filters, use_bias=layer.use_bias)
    elif isinstance(layer, layers.Conv2D):
        yield from _pointwise((batch_size, *layer.input.shape[1:]), layer.filters, use_bias=layer.use_bias)
    else:
        inputs = _input_shapes(layer, batch_size)
        output = (batch_size, *layer.output.shape[1:])
        kind = f"{type(layer).__name__} and gradient"
        yield Operation(kind, (*inputs, output), _with_gradients(layer), _details(layer))


def _depthwise(layer: keras.Layer, batch_size: int, inner: bool) -> Iterator[Operation]:
    """Yield the operations of one filter for each channel."""

    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        strides = (1, *layer.strides, 1)
        return tf.nn.depthwise_conv2d(x, kernel, strides, layer.padding.upper(), dilations=layer.dilation_rate)

    inputs = (batch_size, *layer.input.shape[1:])
    kernel = (*layer.kernel_size, inputs[-1], 1)
    details = f"strides {layer.strides}, {layer.padding}, dilation {layer.dilation_rate}"
    yield from _convolution("depthwise", forward, (inputs, kernel), details, inner)


def _pointwise(inputs: Shape, filters: int, use_bias: bool) -> Iterator[Operation]:
    """Yield the operations of a 1x1 convolution; it never comes first in a block."""

    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, 1, "VALID")

    yield from _convolution("pointwise", forward, (inputs, (1, 1, inputs[-1], filters)), "", inner=True)
    if use_bias:
        output = (*inputs[:-1], filters)
        yield Operation("bias and gradient", (output, (filters,), output), _bias_and_gradient)


def _convolution(
    name: str, forward: Function, shapes: tuple[Shape, Shape], details: str, inner: bool
) -> Iterator[Operation]:
    output = tuple(forward(*(tf.zeros((1, *shapes[0][1:])), tf.zeros(shapes[1]))).shape[1:])
    given = (*shapes, (shapes[0][0], *output))
    yield Operation(f"{name}, forward", shapes, forward, details)
    yield Operation(f"{name}, kernel gradient", given, _gradient(forward, of=1), details)
    if inner:
        yield Operation(f"{name}, input gradient", given, _gradient(forward, of=0), details)


def _gradient(forward: Function, of: int) -> Function:
    """Return the gradient alone: a graph leaves out what its result does not need, here the forward pass."""

    def gradient(x: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = forward(x, kernel)
        return tape.gradient(y, (x, kernel)[of], upstream)

    return gradient


def _with_gradients(layer: keras.Layer) -> Function:
    """Return a layer's output and the gradients of its inputs and weights, from inputs and upstream gradient."""
    training = {"training": True} if isinstance(layer, layers.BatchNormalization) else {}

    def both(*tensors: tf.Tensor) -> Any:
        *inputs, upstream = tensors
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = layer(_as_given(inputs), **training)
        sources = [*inputs, *(variable.value for variable in layer.trainable_variables)]
        return y, tape.gradient(y, sources, upstream)

    return both


def _bias_and_gradient(x: tf.Tensor, bias: tf.Tensor, upstream: tf.Tensor) -> Any:
    return tf.nn.bias_add(x, bias), tf.raw_ops.BiasAddGrad(out_backprop=upstream)


def _error_and_gradient(output: tf.Tensor, target: tf.Tensor) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(output)
        error = tf.reduce_mean(squared_error(output, target))
    return error, tape.gradient(error, output)


def of_optimizer(variables: list[Any]) -> Operation:
    """Return the update of all weights, which changes them."""
    optimizer = loop.adam(1e-3, 1000, variables)
    shapes = tuple(tuple(variable.shape) for variable in variables)
    return Operation("optimiser", shapes, lambda *gradients: optimizer.apply(list(gradients), variables))


def _input_shapes(layer: keras.Layer, batch_size: int) -> tuple[Shape, ...]:
    """Return the shapes of a layer's inputs, those of its first call where it has several."""
    return tuple((batch_size, *tensor.shape[1:]) for tensor in call_inputs(layer, 0))


def _as_given(inputs: Any) -> Any:
    """Return what a layer is called with: a tensor, or a list of several."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _details(layer: keras.Layer) -> str:
    """Return a layer's settings but for its name and its first weights."""
    config = layer.get_config()
    return json.dumps({key: value for key, value in config.items() if key != "name"}, sort_keys=True, default=str)
