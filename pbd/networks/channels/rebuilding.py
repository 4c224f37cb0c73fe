"""Build a model again without some of its channels."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from pbd.networks.channels import kernels, rules
from pbd.networks.channels.identities import Call, Channels
from pbd.networks.channels.tracing import Trace
from pbd.networks.keras_internals import producer, set_weights, walk
from pbd.system import initial_values

Positions = Callable[[Channels], np.ndarray]
"""Returns the positions of a tensor's channels that remain."""


@initial_values.on_host()
def rebuild(traced: Trace, remaining: np.ndarray) -> keras.Model:
    """Return a copy of a model without some of its channels; a `take` of all channels vanishes.

    Args:
        traced: the model.
        remaining: whether the channels of each class remain; in each tensor, one must.
    """
    model, calls = traced.model, iter(traced.calls)
    twins: dict[int, tuple[Any, Call]] = {}

    def positions(channels: Channels) -> np.ndarray:
        return np.flatnonzero(remaining[traced.of(channels)])

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        this = next(calls)
        selected = _new_indices(this, positions)
        if selected is not None and _are_all(selected, positions(this.input)):
            return args[0]
        if id(operation) not in twins:
            twins[id(operation)] = type(operation).from_config(_settings(this, positions)), this
        twin, _ = twins[id(operation)]
        return twin(*args, **kwargs) if selected is None else twin(args[0], selected.tolist())

    shape = list(traced.inputs.shape)
    shape[traced.inputs.axis] = len(positions(traced.inputs))
    inputs = keras.Input(shape[1:], dtype=model.inputs[0].dtype, name=producer(model.inputs[0])[0].name)
    copy = keras.Model(inputs, keras.tree.flatten(walk(model, inputs, call))[0], name=model.name)
    for twin, this in twins.values():
        if getattr(twin, "weights", None):
            _set_weights(twin, this, positions)
    return copy


def is_reduced(traced: Trace, remaining: np.ndarray) -> bool:
    """Return whether `rebuild` would remove anything: a channel, or a `take` of all channels."""
    selections = [(rules.indices(call), call.input) for call in traced.calls if call.inputs]
    is_empty = any(selected is not None and _are_all(selected, x.ids) for selected, x in selections)
    return is_empty or not remaining[traced.classes].all()


def _new_indices(call: Call, positions: Positions) -> np.ndarray | None:
    """Return the indices with which a `take` selects its remaining channels from its input's remaining channels."""
    selected = rules.indices(call)
    if selected is None:
        return None
    return np.searchsorted(positions(call.input), selected[positions(call.outputs[0])])


def _are_all(indices: np.ndarray, channels: np.ndarray) -> bool:
    return np.array_equal(indices, np.arange(len(channels)))


def _settings(call: Call, positions: Positions) -> dict[str, Any]:
    """Return the configuration of a layer or operation for the channels that remain."""
    operation, config = call.operation, call.operation.get_config()
    if len(call.outputs) > 1 or len(positions(call.outputs[0])) == len(call.outputs[0].ids):
        return config
    output = call.outputs[0]
    remaining = positions(output)
    if type(operation) in kernels.WIDTH:
        config[kernels.WIDTH[type(operation)]] = len(remaining)
    elif type(operation) is keras.layers.Reshape:
        target = list(output.shape[1:])
        target[output.axis - 1] = len(remaining)
        config["target_shape"] = tuple(target)
    elif type(operation) is keras.layers.ZeroPadding2D and any(rules.channel_padding(call)):
        config["padding"] = _padding(call, remaining)
    return config


def _padding(call: Call, remaining: np.ndarray) -> list[tuple[int, int]]:
    """Return the padding that adds only the channels that remain."""
    before, behind = rules.channel_padding(call)
    channels = int((remaining < before).sum()), int((remaining >= len(call.outputs[0].ids) - behind).sum())
    return [
        channels if axis == rules.spatial_axis(call) else tuple(padding)
        for axis, padding in enumerate(call.operation.padding)
    ]


def _set_weights(twin: keras.Layer, call: Call, positions: Positions) -> None:
    """Set the weights of a layer's copy for the channels that remain."""
    if all(len(positions(channels)) == len(channels.ids) for channels in (*call.inputs, *call.outputs)):
        set_weights(twin, call.operation.get_weights())
    else:  # none of its channels is fixed by an unknown operation: it has the weights of its type
        ends = {kernels.INPUT: positions(call.input), kernels.OUTPUT: positions(call.outputs[0])}
        set_weights(twin, kernels.select(call, ends))
