"""The inference forms of decoupled blocks, for float32 and for 8-bit integers."""

from typing import Any

import keras
import numpy as np

FILTERED, POINTWISE = "_pbd_filtered", "_pbd_pointwise"
"""Suffixes of the layers that concatenate the filtered maps and that mix them."""

_FEWEST_CHANNELS = 64
"""Blocks with fewer input channels are faster as dense convolutions in 8-bit integers."""


def depthwise_name(layer: str, number: int) -> str:
    """Return the name of a block's depthwise layer.

    Args:
        layer: name of the layer that the block replaces.
        number: a number from 1 to the rank.
    """
    return f"{layer}_pbd_depthwise{number}"


def add_instead_of_concatenate(model: keras.Model) -> keras.Model:
    """Rewrite each pointwise convolution of concatenated maps as a sum of one convolution per map, if there are any.

    Runtimes fuse the addition into the convolutions, but copy memory to concatenate. Training keeps the concatenation,
    since a batch normalisation behind it can still be folded.
    """
    if not any(layer.name.endswith(FILTERED) for layer in model.layers):
        return model
    concatenated: dict[int, list[Any]] = {}
    new_layers: dict[str, tuple[keras.Layer, list[np.ndarray]]] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name.endswith(FILTERED):
            concatenated[id(args[0][0])] = list(args[0])
            return args[0][0]  # stands for all maps up to the pointwise convolution
        maps = concatenated.get(id(args[0])) if operation.name.endswith(POINTWISE) else None
        if maps is None:
            return operation(*args, **kwargs)
        kernel, *bias = operation.get_weights()
        outputs = []
        for number, (x, rows) in enumerate(zip(maps, np.split(kernel, len(maps), axis=2), strict=True), start=1):
            first_bias = bias if number == 1 else []  # only the first convolution adds the bias
            config = {"name": f"{operation.name}{number}", "use_bias": bool(first_bias)}
            layer = keras.layers.Conv2D.from_config({**operation.get_config(), **config})
            new_layers[layer.name] = layer, [rows, *first_bias]
            outputs.append(layer(x))
        return keras.layers.Add(dtype=operation.dtype_policy, name=f"{operation.name}_sum")(outputs)

    rewritten = keras.models.clone_model(model, clone_function=lambda operation: operation, call_function=call)
    for layer, weights in new_layers.values():
        layer.set_weights(weights)
    return rewritten


def for_int8(model: keras.Model) -> keras.Model:
    """Rewrite each block of several depthwise layers for 8-bit integers, if there are any.

    Blocks of few channels become the dense convolution that they compute: nothing lies between their depthwise layers
    and their pointwise convolution, so its kernel is the sum of their products. Blocks of many channels get one
    depthwise layer on the repeated input. CPUs multiply and add four input channels at a time, of which a depthwise
    filter has one, and concatenating different maps rescales them (docs/measurements/2026-11-int8.md).
    """
    ranks = {
        layer.name.removesuffix(FILTERED): len(layer.input) for layer in model.layers if layer.name.endswith(FILTERED)
    }
    if not ranks:
        return model
    filters = {
        name: [model.get_layer(depthwise_name(name, n + 1)) for n in range(rank)] for name, rank in ranks.items()
    }
    filter_names = {layer.name for layers in filters.values() for layer in layers}
    new_layers: list[tuple[keras.Layer, list[np.ndarray]]] = []

    def added(layer: keras.Layer, weights: list[np.ndarray]) -> keras.Layer:
        new_layers.append((layer, weights))
        return layer

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name in filter_names:
            return args[0]  # the input of the block, up to the pointwise convolution
        if operation.name.endswith(FILTERED):
            return args[0][0]
        name = operation.name.removesuffix(POINTWISE)
        if name == operation.name or name not in filters:
            return operation(*args, **kwargs)
        if args[0].shape[-1] < _FEWEST_CHANNELS:
            return added(*_dense(filters[name], operation))(args[0])
        repeated = keras.layers.Concatenate(dtype=operation.dtype_policy, name=f"{name}_repeated")
        return operation(added(*_stacked(filters[name]))(repeated([args[0]] * len(filters[name]))))

    rewritten = keras.models.clone_model(model, clone_function=lambda operation: operation, call_function=call)
    for layer, weights in new_layers:
        layer.set_weights(weights)
    return rewritten


def _dense(depthwise: list[keras.Layer], pointwise: keras.Layer) -> tuple[keras.Layer, list[np.ndarray]]:
    """Return the convolution that a block computes, not built, and its weights."""
    rows, *bias = pointwise.get_weights()
    parts = np.split(rows[0, 0].astype(np.float64), len(depthwise))  # (input channels, output channels) each
    filters = [layer.get_weights()[0][..., 0].astype(np.float64) for layer in depthwise]
    kernel = sum(np.einsum("hwc,co->hwco", each, part) for each, part in zip(filters, parts, strict=True))
    first = depthwise[0].get_config()
    taken = {name: first[name] for name in ("kernel_size", "strides", "padding", "dilation_rate")}
    config = {**pointwise.get_config(), **taken, "name": f"{pointwise.name}_dense"}
    return keras.layers.Conv2D.from_config(config), [kernel.astype(rows.dtype), *bias]


def _stacked(depthwise: list[keras.Layer]) -> tuple[keras.Layer, list[np.ndarray]]:
    """Return one depthwise layer for the repeated input of several, not built, and its weights."""
    first = depthwise[0]
    layer = keras.layers.DepthwiseConv2D.from_config({**first.get_config(), "name": f"{first.name}_stacked"})
    return layer, [np.concatenate([layer.get_weights()[0] for layer in depthwise], axis=2)]
