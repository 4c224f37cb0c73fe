"""A grouped training step written by hand in JAX: what pbd's step is compared with.

The mathematics is that of `pbd.blockwise.distiller.GroupDistiller`, without Keras: the frozen teacher as `jax.lax`
convolutions, with its normalisations folded into one product and one sum per channel; blocks of depthwise and pointwise
convolutions; the sum of their mean squared errors; Adam on each array, with a cosine schedule. An epoch is one
`jax.lax.scan` over its steps. `compare_losses` checks that both compute the same losses.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras import layers

from pbd.errors import PbdError
from pbd.learning.flat_adam import BETA_1, BETA_2, EPSILON
from pbd.networks import graph
from pbd.networks.keras_internals import calls

TOLERANCE = 1e-3
"""Largest difference between the losses of both steps, relative to the loss."""
Weights = dict[str, list[jax.Array]]
"""Arrays by layer name."""
Function = Callable[[list[jax.Array], list[jax.Array]], jax.Array]
"""Maps the weights and the inputs of an operation to its output."""
_LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Network:
    """The graph of a Keras model as a function of its weights."""

    weights: Weights
    outputs: Any
    """Keras tensors, in any structure."""
    operations: tuple[tuple[str, Function, tuple[int, ...], int], ...]
    """Of each call: the layer's name, its function, the tensors that it reads and the one that it writes, by `id`."""
    source: int
    """`id` of the input tensor."""

    def __call__(self, weights: Weights, images: jax.Array) -> Any:
        """Return the values of the outputs, in their structure."""
        values = {self.source: images}
        for name, function, inputs, output in self.operations:
            values[output] = function(weights.get(name, []), [values[tensor] for tensor in inputs])
        return keras.tree.map_structure(lambda tensor: values[id(tensor)], self.outputs)


def network(model: keras.Model) -> Network:
    """Return the graph of a flat functional model with one input, in inference mode.

    Raises:
        PbdError: it has a layer for which there is no hand-written function.
    """
    weights, operations = {}, []
    for operation, inputs, outputs in calls(model):
        arrays, function = _written(operation)
        if arrays:
            weights[operation.name] = [jnp.asarray(array) for array in arrays]
        operations.append((operation.name, function, tuple(map(id, inputs)), id(outputs[0])))
    return Network(weights, model.output, tuple(operations), id(model.inputs[0]))


def _written(layer: Any) -> tuple[list[np.ndarray], Function]:
    """Return the weights of a layer and the function that computes it."""
    if type(layer) is layers.Conv2D:
        return layer.get_weights(), _convolution(layer, groups=layer.groups)
    if type(layer) is layers.DepthwiseConv2D:
        kernel, *bias = layer.get_weights()
        height, width, channels, multiplier = kernel.shape
        grouped = kernel.reshape(height, width, 1, channels * multiplier)
        return [grouped, *bias], _convolution(layer, groups=channels)
    if type(layer) is layers.BatchNormalization:
        return _scale_and_shift(layer), lambda weights, inputs: inputs[0] * weights[0] + weights[1]
    for kind, function in _WITHOUT_WEIGHTS.items():
        if type(layer) is kind:
            return [], function(layer)
    raise PbdError(
        f"the hand-written step has no {type(layer).__name__}. Received: layer {layer.name!r}. "
        "Give another network or another --block."
    )


def _convolution(layer: Any, groups: int) -> Function:
    options = {
        "window_strides": tuple(layer.strides),
        "padding": layer.padding.upper(),
        "rhs_dilation": tuple(layer.dilation_rate),
        "dimension_numbers": _LAYOUT,
        "feature_group_count": groups,
    }
    activation = _activation(layer)

    def function(weights: list[jax.Array], inputs: list[jax.Array]) -> jax.Array:
        kernel, *bias = weights
        outputs = lax.conv_general_dilated(inputs[0], kernel, **options)
        return activation([], [outputs + bias[0] if bias else outputs])

    return function


def _scale_and_shift(layer: layers.BatchNormalization) -> list[np.ndarray]:
    """Return factor and term per channel, which the normalisation is in inference mode."""
    mean, variance = (np.asarray(value, np.float64) for value in (layer.moving_mean, layer.moving_variance))
    scale = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * np.asarray(layer.gamma)
    shift = -mean * scale + (np.asarray(layer.beta) if layer.center else 0.0)
    return [scale.astype(np.float32), shift.astype(np.float32)]


def _activation(layer: Any) -> Function:
    name = getattr(layer.activation, "__name__", "")
    functions = {"linear": lambda x: x, "relu": jax.nn.relu, "relu6": jax.nn.relu6}
    if name not in functions:
        raise PbdError(f"the hand-written step knows {', '.join(functions)}. Received: {name!r} of {layer.name!r}.")
    return lambda _, inputs: functions[name](inputs[0])


def _relu(layer: layers.ReLU) -> Function:
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6.0):
        raise PbdError(f"the hand-written step knows ReLU and ReLU6 only. Received: layer {layer.name!r}.")
    return lambda _, inputs: jax.nn.relu(inputs[0]) if layer.max_value is None else jax.nn.relu6(inputs[0])


def _maximum(layer: layers.MaxPooling2D) -> Function:
    window, strides = (1, *layer.pool_size, 1), (1, *layer.strides, 1)
    return lambda _, inputs: lax.reduce_window(inputs[0], -jnp.inf, lax.max, window, strides, layer.padding.upper())


def _zero_padding(layer: layers.ZeroPadding2D) -> Function:
    return lambda _, inputs: jnp.pad(inputs[0], ((0, 0), *layer.padding, (0, 0)))


_WITHOUT_WEIGHTS: dict[type, Callable[[Any], Function]] = {
    layers.Activation: _activation,
    layers.ReLU: _relu,
    layers.Add: lambda _: lambda _, inputs: functools.reduce(jnp.add, inputs),
    layers.Concatenate: lambda _: lambda _, inputs: jnp.concatenate(inputs, axis=-1),
    layers.MaxPooling2D: _maximum,
    layers.ZeroPadding2D: _zero_padding,
    layers.Rescaling: lambda layer: lambda _, inputs: inputs[0] * np.float32(layer.scale) + np.float32(layer.offset),
    layers.Dropout: lambda _: lambda _, inputs: inputs[0],
}


class HandWrittenEpochs:
    """Trains blocks for whole epochs.

    Args:
        teacher: flat and functional.
        built: the blocks by layer, with their initial weights; they are not changed.
        learning_rate: at the first step.
        steps: at the end of which the learning rate is zero.
        form: maps images on the device and the inputs of a step to a batch; by default the rows `inputs["rows"]`.
        scanned: compile all steps of an epoch into one call; else each step is a call, as pbd trains on a CPU.

    Raises:
        PbdError: see `network`.
    """

    def __init__(
        self,
        teacher: keras.Model,
        built: Mapping[str, keras.Model],
        learning_rate: float,
        steps: int,
        form: Callable[[jax.Array, dict[str, Any]], jax.Array] | None = None,
        scanned: bool = True,
    ) -> None:
        self._prefix = network(graph.truncate(teacher, built))
        self._blocks = {name: network(block) for name, block in built.items()}
        self._learning_rate, self._steps, self._scanned = learning_rate, steps, scanned
        self._form = form or (lambda images, inputs: jnp.take(images, inputs["rows"], axis=0).astype(jnp.float32))
        weights = {name: block.weights for name, block in self._blocks.items()}
        zeros = jax.tree.map(jnp.zeros_like, weights)
        self._state = (weights, zeros, zeros, jnp.zeros((), jnp.int32))
        self._epoch, self._step = jax.jit(self._steps_of_epoch), jax.jit(self._train_step)

    def train(self, images: jax.Array, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Train an epoch; return the blocks' mean squared errors after each step, `(steps, blocks)`.

        Args:
            images: of the whole store, on the device.
            inputs: what describes each batch, with one row for each step.
        """
        if self._scanned:
            self._state, errors = self._epoch(self._state, self._prefix.weights, images, inputs)
            return np.asarray(errors)
        errors = []
        for step in range(len(inputs["rows"])):
            of_step = {name: values[step] for name, values in inputs.items()}
            self._state, error = self._step(self._state, self._prefix.weights, images, of_step)
            errors.append(error.block_until_ready())
        return np.stack(errors)

    def _steps_of_epoch(self, state: Any, frozen: Weights, images: jax.Array, inputs: Any) -> tuple[Any, jax.Array]:
        return lax.scan(lambda state, of_step: self._train_step(state, frozen, images, of_step), state, inputs)

    def _train_step(self, state: Any, frozen: Weights, images: jax.Array, of_step: Any) -> tuple[Any, jax.Array]:
        weights, momentum, velocity, step = state
        activations = self._prefix(frozen, self._form(images, of_step))
        gradients, errors = jax.grad(self._loss, has_aux=True)(weights, activations)
        momentum = jax.tree.map(lambda m, g: m + (g - m) * (1 - BETA_1), momentum, gradients)
        velocity = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - BETA_2), velocity, gradients)
        count = (step + 1).astype(jnp.float32)
        rate = 0.5 * self._learning_rate * (1 + jnp.cos(math.pi * step / self._steps))
        rate = rate * jnp.sqrt(1 - BETA_2**count) / (1 - BETA_1**count)
        weights = jax.tree.map(lambda w, m, v: w - m * rate / (jnp.sqrt(v) + EPSILON), weights, momentum, velocity)
        return (weights, momentum, velocity, step + 1), errors

    def _loss(self, weights: dict[str, Weights], activations: dict[str, list[jax.Array]]) -> tuple[jax.Array, Any]:
        """Return the sum of the blocks' mean squared errors, and each of them."""
        errors = [
            jnp.mean(jnp.square(block(weights[name], activations[name][0]) - activations[name][1]))
            for name, block in self._blocks.items()
        ]
        return sum(errors[1:], errors[0]), jnp.stack(errors)


def compare_losses(names: Sequence[str], pbd: Mapping[str, Iterable[float]], by_hand: np.ndarray) -> float:
    """Return the largest relative difference of the blocks' mean errors over an epoch.

    Args:
        names: of the layers, in the order of the columns of `by_hand`.
        pbd: by layer, the mean error of each epoch, of which there is one.
        by_hand: `(steps, layers)`.

    Raises:
        PbdError: it is larger than `TOLERANCE`, so the two do not compute the same.
    """
    ours, theirs = np.array([next(iter(pbd[name])) for name in names]), by_hand.mean(axis=0)
    differences = np.abs(ours - theirs) / np.maximum(np.abs(ours), np.finfo(np.float32).tiny)
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= TOLERANCE:
        raise PbdError(
            f"both steps must compute the same losses, to {TOLERANCE:g} of each. Received: {ours[worst]:.6g} by pbd, "
            f"{theirs[worst]:.6g} by hand, for {names[worst]!r}. Give fewer --steps, or compare the two networks."
        )
    return float(differences[worst])
