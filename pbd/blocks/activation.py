"""The activation of the replaced layer."""

from typing import Any

import keras

from pbd.records import LayerTask


def _activated(x: Any, task: LayerTask) -> Any:
    """The replaced layer's own activation, where it has one."""
    activation = keras.activations.get(task.activation)
    if activation is keras.activations.linear:
        return x
    return keras.layers.Activation(activation, name=f"{task.layer_name}_pbd_activation")(x)
