"""The student rewritten for inference: the same outputs from fewer operations."""

from typing import Any

import keras
import numpy as np

from pbd import blocks
from pbd.networks import graph
from pbd.networks.folding import Made, normalised_layers, rebuilt, without_normalisations


def fold(model: keras.Model) -> keras.Model:
    """Return a copy that computes the same in inference mode; training it further would not be the same.

    Args:
        model: flat and functional (see `graph.flatten`), with its weights.
    """
    model = graph.flatten(model)
    while normalised := normalised_layers(model):  # one may stand behind another
        model = without_normalisations(model, normalised)
    return _added_not_concatenated(model)


def _added_not_concatenated(model: keras.Model) -> keras.Model:
    """Write each pointwise convolution of maps side by side as the sum of one of each; the first has the bias."""
    side_by_side, made = dict[int, list[Any]](), Made()

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name.endswith(blocks.FILTERED):
            side_by_side[id(args[0][0])] = list(args[0])
            return args[0][0]
        parts = side_by_side.get(id(args[0])) if operation.name.endswith(blocks.POINTWISE) else None
        if parts is None:
            return operation(*args, **kwargs)
        kernel, *bias = operation.get_weights()
        outputs = []
        for number, (part, rows) in enumerate(zip(parts, np.split(kernel, len(parts), axis=2), strict=True), start=1):
            own_bias = bias if number == 1 else []
            config = {"name": f"{operation.name}{number}", "use_bias": bool(own_bias)}
            layer = keras.layers.Conv2D.from_config({**operation.get_config(), **config})
            made[layer.name] = layer, [rows, *own_bias]
            outputs.append(layer(part))
        return keras.layers.Add(name=f"{operation.name}_sum")(outputs)

    return rebuilt(model, call, made)
