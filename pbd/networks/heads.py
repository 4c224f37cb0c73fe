"""The head of a classifier, a last softmax or sigmoid: finding and removing it, and what its outputs say."""

from enum import Enum
from typing import Any

import keras
import numpy as np

from pbd.networks.cost import layer_calls
from pbd.networks.keras_internals import call_inputs, producer

LOWEST = 80.0
"""Logits this far below the largest are underflows in float32 probabilities, or nearly."""
LARGEST = 8.0
"""Probabilities of larger logits are so near 1 that float32 rounds them too much."""


class Head(Enum):
    """What the last operation of a network is."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


_ACTIVATIONS = {keras.activations.softmax: Head.SOFTMAX, keras.activations.sigmoid: Head.SIGMOID}
"""The activations that turn logits into probabilities."""
_WITHOUT_ACTIVATION = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.Identity,
    keras.layers.Reshape,
)
"""Layers behind which logits are still logits."""


def split(model: keras.Model) -> keras.Model:
    """Move a softmax or sigmoid that is the last layer's activation into a layer of its own (which shares layers)."""
    last, _ = _last(model)
    activation = next((each for each in _ACTIVATIONS if getattr(last, "activation", None) is each), None)
    if isinstance(last, keras.layers.Activation) or activation is None:
        return model
    if dict(layer_calls(model))[last] > 1:  # its other calls need the activation
        return model
    last.activation = keras.activations.linear
    name = f"{last.name}_{activation.__name__}"
    scores = keras.layers.Activation(activation, dtype=last.dtype_policy, name=name)(model.outputs[0])
    return keras.Model(model.inputs[0], scores, name=model.name)


def head_of(model: keras.Model) -> Head:
    """Return the head of a model.

    A head inside another layer is recognised only after `split` has moved it into a layer of its own.
    """
    last, _ = _last(model)
    for activation, head in _ACTIVATIONS.items():
        if _is(last, activation):
            return head
    return Head.NONE


def remove(model: keras.Model) -> keras.Model:
    """Return the model of the logits: without its head, if it has one (sharing layers)."""
    is_head = head_of(model) is not Head.NONE
    scores = call_inputs(*_last(model))[0] if is_head else model.outputs[0]
    return keras.Model(model.inputs[0], scores, name=f"{model.name}_logits")


def logits_layers(model: keras.Model) -> list[Any]:
    """Return the operations from the logits of a model back to their layer, through those that pool or reshape."""
    return [operation for operation, _ in _calls_to_layer(remove(model).outputs[0])]


def ends_in_logits(model: keras.Model) -> bool:
    """Return whether the outputs of `remove(model)` are logits, as far as its layers tell.

    They are those of a layer without activation, the mean of such outputs, or pooled or reshaped from them.
    """
    return _are_logits(remove(model).outputs[0])


def _are_logits(scores: Any) -> bool:
    operation, call_index = _calls_to_layer(scores)[-1]
    if isinstance(operation, keras.layers.Average):
        return all(map(_are_logits, call_inputs(operation, call_index)))
    return getattr(operation, "activation", None) is keras.activations.linear


def _calls_to_layer(scores: Any) -> list[tuple[Any, int]]:
    """Return the calls from a Keras tensor back to the layer that computes it, through those that pool or reshape."""
    calls = [producer(scores)]
    while isinstance(calls[-1][0], _WITHOUT_ACTIVATION) or _is(calls[-1][0], keras.activations.linear):
        calls.append(producer(call_inputs(*calls[-1])[0]))
    return calls


def _last(model: keras.Model) -> tuple[Any, int]:
    """Return the operation that computes the outputs, before linear activations (which cast them), and its call."""
    operation, call_index = producer(model.outputs[0])
    while _is(operation, keras.activations.linear):
        operation, call_index = producer(call_inputs(operation, call_index)[0])
    return operation, call_index


def _is(operation: Any, activation: Any) -> bool:
    """Return whether an operation is this activation: a layer, or a function of `keras.ops`."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is activation
    return type(operation).__name__.lower() == activation.__name__


def logits(outputs: np.ndarray, head: Head) -> np.ndarray:
    """Return the logits of outputs, (batch, outputs) float64, as far as float32 probabilities keep them.

    Those of a softmax are known up to a constant: the largest of an image is 0.
    """
    outputs = np.asarray(outputs, np.float64)
    if head is Head.NONE:
        return outputs
    with np.errstate(divide="ignore", invalid="ignore"):
        if head is Head.SIGMOID:
            return np.clip(np.log(outputs) - np.log1p(-outputs), -LARGEST, LARGEST)
        logarithms = np.log(outputs)
        return np.maximum(logarithms - logarithms.max(axis=-1, keepdims=True), -LOWEST)


def probabilities(logits: np.ndarray, head: Head) -> np.ndarray:
    """Return the outputs of a network with these logits, (batch, outputs) float64."""
    if head is Head.NONE:
        return logits
    if head is Head.SIGMOID:
        return np.exp(-np.logaddexp(0.0, -logits))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def classes(outputs: np.ndarray, head: Head) -> np.ndarray:
    """Return the predicted class of each image, (batch,); a single output is the score of class 1 of two."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(axis=-1)
    return (outputs[:, 0] > (0.5 if head is Head.SIGMOID else 0.0)).astype(int)
