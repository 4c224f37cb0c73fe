"""Gradients on any backend: Keras has no function for them."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def gradients(
    loss: Callable[..., Any], inputs: Sequence[np.ndarray], variables: Sequence[Any] = ()
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a loss and its gradients by its inputs and then by variables.

    Args:
        loss: of the inputs, a scalar; it may use the variables and assign other ones.
        inputs: arrays.
        variables: of Keras.
    """
    tensors = [keras.ops.convert_to_tensor(array) for array in inputs]
    value, results = _BACKENDS[keras.backend.backend()](loss, tensors, variables)
    return keras.ops.convert_to_numpy(value), [keras.ops.convert_to_numpy(each) for each in results]


def _with_tensorflow(loss: Callable[..., Any], inputs: list[Any], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = loss(*inputs)
    return value, tape.gradient(value, [*inputs, *(variable.value for variable in variables)])


def _with_jax(loss: Callable[..., Any], inputs: list[Any], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    import jax

    def stateless(*tensors: Any) -> Any:
        values = zip(variables, tensors[len(inputs) :], strict=True)
        with keras.StatelessScope(state_mapping=list(values)):
            return loss(*tensors[: len(inputs)])

    tensors = [*inputs, *(variable.value for variable in variables)]
    value, results = jax.value_and_grad(stateless, tuple(range(len(tensors))))(*tensors)
    return value, list(results)


def _with_torch(loss: Callable[..., Any], inputs: list[Any], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    import torch

    tensors = [*(tensor.requires_grad_() for tensor in inputs), *(variable.value for variable in variables)]
    value = loss(*tensors[: len(inputs)])
    return value, list(torch.autograd.grad(value, tensors))


_BACKENDS = {"tensorflow": _with_tensorflow, "jax": _with_jax, "torch": _with_torch}
