"""The least time of a grouped training step: its operations over a measured rate, its bytes over a measured bandwidth.

Counted per image, then multiplied by the batch size:

* **Operations**, two per multiply-accumulate. Teacher: the forward pass up to the last layer that a block replaces.
  Blocks: each convolution once for its output and once for its kernel's gradient, and once more for its input's
  gradient unless its input is the block's input. All else (normalisations, activations, sums, losses, the optimiser) is
  not counted.
* **Bytes**, of float32 activations. Teacher: each convolution and each pooling reads its input and writes its output;
  a sum also reads its other inputs. Blocks: a convolution reads its input and writes its output; for its kernel's
  gradient it reads its input and its output's gradient; for its input's gradient, if needed, it reads its output's
  gradient and writes its input's. The error reads the target, and writes the difference in place of the block's output.
  All else counts as fused into the convolution before it. The images are read as bytes. Weights are not read for each
  image: the kernels of the teacher are read once in a step, and seven arrays of the blocks' parameters (parameters and
  two moments, each read and written, and the gradient).

A floor is no prediction: no library fuses all of this, and depthwise convolutions do not run at the rate of matrix
products.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import layers

from pbd.learning.flat_adam import FlatAdam
from pbd.networks import cost, graph
from pbd.networks.keras_internals import calls

FLOAT_BYTES = 4
_POOLING = (layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D)
_KERNELS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)


@dataclass(frozen=True)
class Work:
    """What a step computes and moves."""

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> "Work":
        return Work(factor * self.operations, factor * self.bytes)


@dataclass(frozen=True)
class Rates:
    """What the device does at most."""

    operations_per_s: float
    """Of a product of two large float32 matrices, in JAX's default precision (TF32 on NVIDIA GPUs from Ampere on)."""
    bytes_per_s: float
    """Read and written by a copy of a large array."""


def of_step(teacher: keras.Model, built: Mapping[str, keras.Model], batch_size: int) -> Work:
    """Return the work of a grouped step; what is counted is said at the top of this module."""
    prefix = graph.truncate(teacher, built)
    total = _of_teacher(prefix)
    for block in built.values():
        total += _of_block(block)
    parameters = sum(block.count_params() for block in built.values())
    once = prefix.count_params() + FlatAdam.COPIES * parameters
    return total * batch_size + Work(bytes=FLOAT_BYTES * once)


def _of_teacher(prefix: keras.Model) -> Work:
    total = Work(2.0 * cost.count_macs(prefix), float(math.prod(prefix.inputs[0].shape[1:])))
    for operation, inputs, outputs in calls(prefix):
        if isinstance(operation, (*_KERNELS, *_POOLING)):
            total += Work(bytes=_bytes(*inputs, *outputs))
        elif len(inputs) > 1:
            total += Work(bytes=_bytes(*inputs[1:]))
    return total


def _of_block(block: keras.Model) -> Work:
    target = _bytes(block.outputs[0])
    total = Work(bytes=target)
    for operation, inputs, outputs in calls(block):
        if not isinstance(operation, _KERNELS):
            continue
        moved, result = _bytes(*inputs), _bytes(*outputs)
        inner = inputs[0] is not block.inputs[0]
        passes = 3 if inner else 2
        total += Work(2.0 * passes * cost.layer_macs(operation), passes * (moved + result))
    return total


def _bytes(*tensors: Any) -> float:
    return float(sum(FLOAT_BYTES * math.prod(tensor.shape[1:]) for tensor in tensors))


def measure_rates(size: int, repeats: int = 5) -> Rates:
    """Measure what the device does at most.

    Args:
        size: rows and columns of the matrices; the array that is copied has 16 times as many values.
        repeats: of which the fastest counts.
    """
    one = jnp.ones((size, size), jnp.float32)
    array = jnp.ones((16, size, size), jnp.float32)
    product_s = fastest(jax.jit(jnp.matmul), (one, one), repeats)
    copy_s = fastest(jax.jit(lambda values: values + 1.0), (array,), repeats)
    return Rates(2.0 * size**3 / product_s, 2.0 * array.nbytes / copy_s)


CALLS = 10
"""Calls of a function in one measurement."""


def fastest(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> float:
    """Return the least seconds of a call; the next one is sent before the host waits for it."""
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        earlier = function(*arguments)
        for _ in range(CALLS - 1):
            result = function(*arguments)
            jax.block_until_ready(earlier)  # at most three results take memory
            earlier = result
        jax.block_until_ready(earlier)
        taken.append((time.perf_counter() - started) / CALLS)
    return min(taken)
