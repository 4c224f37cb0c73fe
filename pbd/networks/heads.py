"""The head of a classifier: what its outputs say about the classes."""

from enum import Enum
from typing import Any

import keras
import numpy as np

from pbd.networks import graph
from pbd.networks.keras_internals import call_inputs

LOWEST = 80.0
"""Logits this far below the largest are underflows in float32 probabilities, or nearly."""
LARGEST = 8.0
"""Probabilities of larger logits are so near 1 that float32 rounds them too much."""


class Head(Enum):
    """What the last operation of a network is."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


def head_of(network: keras.Model) -> Head:
    """Return the head of a flat network."""
    if graph.logits(network).outputs[0] is network.outputs[0]:
        return Head.NONE
    return Head.SIGMOID if graph.has_sigmoid(network) else Head.SOFTMAX


def ends_in_logits(network: keras.Model) -> bool:
    """Return whether the outputs of `graph.logits(network)` are logits, as far as its layers tell.

    They are those of a layer without activation, the mean of such outputs, or pooled or reshaped from them.
    """
    return _are_logits(graph.logits(network).outputs[0])


def _are_logits(scores: Any) -> bool:
    operation, call_index = graph.calls_to_layer(scores)[-1]
    if isinstance(operation, keras.layers.Average):
        return all(map(_are_logits, call_inputs(operation, call_index)))
    return getattr(operation, "activation", None) is keras.activations.linear


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
