"""Fake quantisation: a network that computes in floating point what a runtime computes in 8-bit integers.

Kernels are rounded to 8 bits with one symmetric scale for each output channel, activations to 8 bits with one range
that contains 0 (Jacob et al. 2018, arXiv:1712.05877). The gradient passes through the rounding as if it were the
identity (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), so that the network can be trained.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.deploy.int8 import rounding, separable_form
from pbd.deploy.runtimes.base import KERNEL_LIMIT, SMALLEST_SCALE
from pbd.networks import graph
from pbd.networks.keras_internals import calls, walk

LEVELS = 255
"""Steps between the smallest and the largest value of 8 bits."""
_BATCH = 64
_JOINING = ("Add", "Average", "Concatenate", "GlobalAveragePooling2D", "Multiply", "Subtract")
"""Operations whose outputs runtimes round to a range of their own."""
_KEEPING = (
    "AveragePooling2D",
    "Flatten",
    "GlobalMaxPooling2D",
    "Identity",
    "MaxPooling2D",
    "Permute",
    "Reshape",
    "ZeroPadding2D",
)
"""Operations whose outputs runtimes round to the range of the input."""


class FakeQuantize(keras.layers.Layer):
    """Rounds activations to the 256 values of a range.

    Args:
        name: the name of the layer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.low = self.add_weight((), "zeros", name="low", trainable=False)
        self.high = self.add_weight((), "ones", name="high", trainable=False)

    def call(self, x: Any) -> Any:
        ops, scale = keras.ops, self.scale()
        zero_point = ops.round(-self.low / scale)
        # Clipped values have no gradient.
        integers = ops.clip(straight_through(x / scale), -zero_point, LEVELS - zero_point)
        return integers * scale

    def scale(self) -> Any:
        """Return the step between two values, a scalar tensor."""
        return (self.high - self.low) / LEVELS

    def set_range(self, low: float, high: float) -> None:
        """Set the range: extended to contain 0, and shifted until 0 is one of the 256 values."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / LEVELS, SMALLEST_SCALE)
        zero_point = round(-low / scale)
        self.low.assign(-zero_point * scale)
        self.high.assign((LEVELS - zero_point) * scale)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        low, high = map(keras.ops.convert_to_numpy, (self.low, self.high))
        return float(low), float(high)


class RoundedKernels(keras.layers.Layer):
    """A layer whose kernel is rounded to 8 bits, with one scale for each output channel, and its bias to 32 bits.

    The step of the bias is that of the products: the scale of the input times that of the kernel. As small as it is,
    it decides some roundings of the output, and then many in the layers behind it.

    Args:
        layer: a built layer of `rounding.LAYERS`, without activation.
        source: rounds the input.
        limit: the largest integer of the kernel.
    """

    def __init__(self, layer: keras.Layer, source: FakeQuantize, limit: int) -> None:
        super().__init__(name=f"{layer.name}_behind_{source.name}", dtype=layer.dtype_policy)
        self.layer = layer
        self._input_scale = source.scale  # a function, so that the other layer does not become a part of this one
        self._limit = limit
        self.built = True

    def call(self, x: Any) -> Any:
        values = [(self.layer.kernel, self.rounded_kernel())]
        if self.layer.use_bias:
            values.append((self.layer.bias, self.rounded_bias()))
        with keras.StatelessScope(state_mapping=values):
            return self.layer(x)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(self.layer.compute_output_shape(x.shape), dtype=self.layer.compute_dtype)

    def rounded_kernel(self) -> Any:
        """Return the rounded kernel, as a tensor of the kernel's shape."""
        scale = self._scale()
        return straight_through(self.layer.kernel / scale) * scale

    def rounded_bias(self) -> Any:
        """Return the rounded bias, (channels,)."""
        step = self._input_scale() * keras.ops.reshape(self._scale(), (-1,))
        return straight_through(self.layer.bias / step) * step

    def _scale(self) -> Any:
        """Return the scale of each output channel, with axes of length 1 in the place of all others."""
        ops, kernel = keras.ops, self.layer.kernel
        # A depthwise kernel is (height, width, channels, multiplier): its output channels are the last two axes.
        outputs = 2 if isinstance(self.layer, keras.layers.DepthwiseConv2D) else 1
        largest = ops.max(ops.abs(kernel), axis=tuple(range(len(kernel.shape) - outputs)), keepdims=True)
        return ops.stop_gradient(ops.maximum(largest / self._limit, SMALLEST_SCALE))


def straight_through(x: Any) -> Any:
    """Return `x` rounded to whole numbers, with the gradient of `x` itself."""
    return x + keras.ops.stop_gradient(keras.ops.round(x) - x)


@dataclass(eq=False)
class _Value:
    """A tensor of the network, and how a runtime holds it."""

    tensor: Any
    users: int = 1
    integer: bool = False
    """Whether the runtime computes it in integers."""
    quantizer: FakeQuantize | None = None
    """The layer that rounds it, once there is one."""


def _fake_quantized(network: keras.Model, limit: int = KERNEL_LIMIT, rounds_outputs: bool = True) -> keras.Model:
    """Return a network with fake quantisation, whose ranges are not set (see `FakeQuantization`).

    A tensor is rounded where runtimes round it: the inputs of layers with kernels; the outputs of these, of sums,
    concatenations and poolings, in each case behind a following ReLU. Everything else is computed in float32.

    Args:
        network: as `portable.portable` returns it for 8-bit integers; its layers become part of the new network, and
            are changed.
        limit: the largest integer of the kernels.
        rounds_outputs: whether the outputs of the network are rounded too.
    """
    return _Builder(separable_form.with_separate_convolutions(network), limit).build(rounds_outputs)


class _Builder:
    """Puts the layers of fake quantisation into a graph."""

    def __init__(self, network: keras.Model, limit: int) -> None:
        self._network, self._limit = network, limit
        self._users = _user_counts(network)
        self._activations: dict[int, keras.layers.Activation] = {}
        self._calls = self._quantizers = 0

    def build(self, rounds_outputs: bool) -> keras.Model:
        inputs = keras.Input(self._network.inputs[0].shape[1:], name=self._network.inputs[0].name)
        last = keras.tree.flatten(walk(self._network, _Value(inputs), self._call))[0]
        outputs = self._held(last) if rounds_outputs else last
        return keras.Model(inputs, outputs.tensor, name=self._network.name)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the output of an operation, which is rounded when it is used."""
        values = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, _Value)]
        users = self._users[self._calls]
        self._calls += 1
        kind = type(operation).__name__
        if isinstance(operation, keras.layers.Dropout):
            values[0].users = max(values[0].users, users)
            return values[0]
        if type(operation) in rounding.LAYERS:
            return self._weighted(operation, self._quantized(values[0]), users)
        if kind in _JOINING and any(value.integer for value in values):
            for value in values:
                self._quantized(value)
            return self._applied(operation, args, kwargs, users, integer=True)
        if _is_relu(operation) and values[0].integer and values[0].quantizer is None and values[0].users == 1:
            return self._applied(operation, args, kwargs, users, integer=True)  # the runtime fuses it
        for value in values:
            self._held(value)
        if kind in _KEEPING and values[0].quantizer is not None:
            output = self._applied(operation, args, kwargs, users, integer=True)
            output.quantizer = values[0].quantizer
            output.tensor = output.quantizer(output.tensor)
            return output
        return self._applied(operation, args, kwargs, users, integer=_is_relu(operation) and values[0].integer)

    def _weighted(self, layer: keras.Layer, value: _Value, users: int) -> _Value:
        """Return the output of a layer with a rounded kernel; its activation becomes an operation of its own."""
        if id(layer) not in self._activations:
            self._activations[id(layer)] = keras.layers.Activation(
                layer.activation, dtype=layer.dtype_policy, name=f"{layer.name}_activation"
            )
            layer.activation = keras.activations.linear
        assert value.quantizer is not None
        output = _Value(RoundedKernels(layer, value.quantizer, self._limit)(value.tensor), users, integer=True)
        activation = self._activations[id(layer)]
        if activation.activation is keras.activations.linear:
            return output
        if not _is_relu(activation):
            self._quantized(output)
        return self._applied(activation, (output,), {}, users, integer=_is_relu(activation))

    def _applied(self, operation: Any, args: Any, kwargs: Any, users: int, integer: bool) -> Any:
        if isinstance(operation, keras.layers.BatchNormalization):  # one that could not be folded
            operation.trainable = False
        args, kwargs = keras.tree.map_structure(_tensor, (args, kwargs))
        outputs = operation(*args, **graph.in_mode(operation, False, kwargs))
        return keras.tree.map_structure(lambda tensor: _Value(tensor, users, integer), outputs)

    def _held(self, value: _Value) -> _Value:
        """Round a value if the runtime computes it in integers."""
        return self._quantized(value) if value.integer else value

    def _quantized(self, value: _Value) -> _Value:
        """Round a value, once for all its users."""
        if value.quantizer is None:
            self._quantizers += 1
            value.quantizer = FakeQuantize(f"fake_quantize_{self._quantizers}")
            value.tensor, value.integer = value.quantizer(value.tensor), True
        return value


def _tensor(leaf: Any) -> Any:
    return leaf.tensor if isinstance(leaf, _Value) else leaf


def _is_relu(operation: Any) -> bool:
    """Return whether an operation is a ReLU, which a runtime computes by the lower end of the range."""
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope and not operation.threshold
    return getattr(operation, "activation", None) in (keras.activations.relu, keras.activations.relu6)


def _user_counts(model: keras.Model) -> list[int]:
    """Return how many calls use the output of each call of the graph, in the order of `walk`."""
    counts = collections.Counter(id(tensor) for _, inputs, _ in calls(model) for tensor in inputs)
    return [max(counts[id(tensor)] for tensor in outputs) for _, _, outputs in calls(model)]


@dataclass(frozen=True)
class FakeQuantization:
    """The ranges to which the tensors of a network are rounded; picklable, unlike a network with fake quantisation."""

    extremes: Mapping[str, tuple[float, float]]
    """The smallest and the largest value in float32, by the name of the layer that rounds the tensor."""
    limit: int
    """The largest integer of the kernels."""
    rounds_outputs: bool
    """Whether the outputs of the network are rounded too."""

    @classmethod
    def calibrated(
        cls, network: keras.Model, images: np.ndarray, limit: int = KERNEL_LIMIT, rounds_outputs: bool = True
    ) -> "FakeQuantization":
        """Return the fake quantisation whose ranges are the extremes of the activations in float32.

        Args:
            network: as `portable.portable` returns it for 8-bit integers.
            images: (n, height, width, channels) float32, as the network takes them.
            limit: see `FakeQuantization`, as `rounds_outputs`.
            rounds_outputs: see `limit`.
        """
        rounded = cls({}, limit, rounds_outputs).applied(network)
        return cls(_extremes(rounded, images), limit, rounds_outputs)

    def applied(self, network: keras.Model) -> keras.Model:
        """Return a copy of the network with this fake quantisation."""
        rounded = _fake_quantized(graph.flatten(network), self.limit, self.rounds_outputs)
        for name, (low, high) in self.extremes.items():
            rounded.get_layer(name).set_range(low, high)
        return rounded


def _extremes(network: keras.Model, images: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each activation in float32, by the layer that rounds it."""
    extremes: dict[str, tuple[float, float]] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(operation, RoundedKernels):
            return operation.layer(*args)
        if not isinstance(operation, FakeQuantize):
            return operation(*args, **graph.in_mode(operation, False, kwargs))
        values = keras.ops.convert_to_numpy(args[0])
        low, high = extremes.get(operation.name, (0.0, 0.0))
        extremes[operation.name] = min(low, float(values.min())), max(high, float(values.max()))
        return args[0]

    for batch in np.split(images, range(_BATCH, len(images), _BATCH)):
        walk(network, keras.ops.convert_to_tensor(batch), call)
    return extremes


def ranges(network: keras.Model) -> dict[str, tuple[float, float]]:
    """Return the range of each rounded activation, by the layer that rounds it."""
    return {layer.name: layer.range for layer in network.layers if isinstance(layer, FakeQuantize)}


def rounded_kernels(network: keras.Model) -> dict[str, np.ndarray]:
    """Return the rounded kernels, by layer."""
    return {
        layer.layer.name: keras.ops.convert_to_numpy(layer.rounded_kernel())
        for layer in network.layers
        if isinstance(layer, RoundedKernels)
    }
