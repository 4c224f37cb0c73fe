"""Sums that TensorFlow's fused CPU kernels compute wrongly.

On CPUs, TensorFlow replaces "convolution with bias, addition, activation" by one oneDNN kernel. It is up to 10% off for
a leaky ReLU of any slope but 0.2, without a warning, and fails for mish (TensorFlow 2.21). The other activations of
Keras, and the other layers with a bias, are computed exactly; `tests/deploy/test_activations.py` compares them all.
Therefore pbd does not rewrite a network so that it contains such a sum.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from pbd.networks.cost import layer_calls
from pbd.networks.keras_internals import walk

Consumers = Mapping[int, Sequence[tuple[Any, list[Any]]]]
"""By the `id` of a tensor, the operations that use it, each with the tensors that this call returns."""


def consumers(model: keras.Model) -> Consumers:
    """Return which operations of a flat functional model use each tensor; the model itself uses its outputs."""
    calls = {operation.name: count for operation, count in layer_calls(model)}
    users: dict[int, list[tuple[Any, list[Any]]]] = collections.defaultdict(list)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        # The model's own tensors are returned if possible, so that nothing is called again and identities hold.
        outputs = operation.output if calls.get(operation.name, 1) == 1 else operation(*args, **kwargs)
        for tensor in keras.tree.flatten((args, kwargs)):
            users[id(tensor)].append((operation, keras.tree.flatten(outputs)))
        return outputs

    for tensor in keras.tree.flatten(walk(model, model.inputs, call)):
        users[id(tensor)].append((model, []))
    return users


def misfused(model: keras.Model) -> set[str]:
    """Return the names of the convolutions with bias that are part of a sum that TensorFlow computes wrongly.

    Args:
        model: flat and functional.
    """
    users = consumers(model)
    return {
        operation.name
        for entries in users.values()
        for operation, outputs in entries
        if isinstance(operation, keras.layers.Conv2D | keras.layers.SeparableConv2D) and operation.use_bias
        if any(misfused_behind(tensor, users) for tensor in outputs)
    }


def misfused_behind(tensor: Any, users: Consumers, is_sum: bool = False) -> bool:
    """Return whether TensorFlow would compute wrongly what follows a convolution with bias whose output is `tensor`.

    Operations without weights may vanish from the graph, as dropout does in inference, so they count as absent.

    Args:
        tensor: a tensor of a flat functional model.
        users: the consumers of its tensors.
        is_sum: whether the tensor is already the sum of the convolution and something else.
    """
    for operation, outputs in users.get(id(tensor), ()):
        if is_sum and not _is_fused_exactly(operation):
            return True
        if getattr(operation, "weights", None):
            continue
        summed = is_sum or type(operation).__name__ == "Add"
        if any(misfused_behind(output, users, summed) for output in outputs):
            return True
    return False


def _is_fused_exactly(operation: Any) -> bool:
    """Return whether the operation behind a sum is none that TensorFlow computes wrongly; False if that is unknown."""
    if isinstance(operation, keras.layers.Activation):
        function = operation.activation
        built_in = getattr(keras.activations, getattr(function, "__name__", ""), None) is function
        return built_in and function is not keras.activations.mish
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope
    unknown = not type(operation).__module__.startswith("keras.") or isinstance(operation, keras.layers.Lambda)
    return not unknown and type(operation).__name__ not in ("LeakyReLU", "LeakyRelu", "Mish")
