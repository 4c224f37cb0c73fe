"""Digests of networks, by which two networks that compute the same, or cost the same, are recognised."""

import hashlib
import json
from typing import Any

import keras
import numpy as np

_TRAINING = ("_initializer", "_regularizer", "_constraint", "trainable", "seed")
"""Ends of the names of settings that only training reads."""


def model_digest(model: keras.Model) -> str:
    """Return a SHA-256 over the settings of the layers, their connections, and the weights.

    The names of the layers do not count: Keras numbers unnamed layers within a process, so a model that is built again
    has other names.

    Args:
        model: a flat functional model.
    """
    digest = hashlib.sha256(json.dumps(_structure(model.get_config())).encode())
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def structure_digest(model: keras.Model) -> str:
    """Return a SHA-256 over what decides how long a network takes: its layers, their shapes and their connections.

    Names, weights and what only training reads (initialisers, regularisers, constraints, seeds) do not count.

    Args:
        model: a functional model.
    """
    structure = _without_training(_structure(model.get_config()))
    return hashlib.sha256(json.dumps(structure).encode()).hexdigest()


def _without_training(value: Any) -> Any:
    """Return a part of a configuration without what only training reads."""
    if isinstance(value, list | tuple):
        return [_without_training(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_training(item) for key, item in value.items() if not key.endswith(_TRAINING)}


def _structure(config: dict[str, Any]) -> list[Any]:
    """Return the configuration of a functional model with positions in place of the names of its layers."""
    layers = config["layers"]
    positions = {layer["name"]: position for position, layer in enumerate(layers)}
    ends = [_ends(config[side], positions) for side in ("input_layers", "output_layers")]
    kinds = [layer["registered_name"] or layer["class_name"] for layer in layers]
    settings = [layer["config"] | {"name": None} for layer in layers]
    calls = [layer["inbound_nodes"] for layer in layers]
    return [kinds, _without_names(settings, positions), _without_names(calls, positions), ends]


def _without_names(value: Any, positions: dict[str, int]) -> Any:
    """Return a part of a layer's configuration without names of layers; only the names of layers are arbitrary.

    Layers also occur inside of others, as activations or in wrappers.
    """
    if isinstance(value, list | tuple):
        return [_without_names(item, positions) for item in value]
    if not isinstance(value, dict):
        return value
    if "input_layers" in value:
        return _structure(value)
    if "keras_history" in value:  # a tensor: its layer, the number of the call, the number of the output
        layer, *output = value["keras_history"]
        return {**value, "keras_history": [positions[layer], *output]}
    is_layer = "trainable" in value or "batch_shape" in value  # an input has no `trainable`; dtypes have names, too
    return {key: _without_names(item, positions) for key, item in value.items() if not (key == "name" and is_layer)}


def _ends(value: Any, positions: dict[str, int]) -> Any:
    """Return the inputs or outputs of a model, one `[layer, call, tensor]` or several, with positions for layers."""
    if isinstance(value, list | tuple):
        return [_ends(item, positions) for item in value]
    return positions[value] if isinstance(value, str) else value
