"""The activation of the replaced layer."""

from typing import Any

import keras

from pbd.records import Layer


def activated(x: Any, layer: Layer) -> Any:
    """Return the activation of the replaced layer applied to `x`; `x` itself if the layer has none."""
    activation = keras.activations.get(layer.activation)
    if activation is keras.activations.linear:
        return x
    return keras.layers.Activation(activation, dtype=layer.dtype, name=f"{layer.name}_pbd_activation")(x)
