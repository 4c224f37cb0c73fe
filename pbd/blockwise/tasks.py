"""The layers that a run replaces: every convolution with a kernel other than 1x1, and why some are skipped."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import keras

from pbd import blocks
from pbd.errors import BadInputError, UsageError, unknown_name
from pbd.networks.cost import count_macs, count_params, layer_macs
from pbd.networks.graph import find_convolutions
from pbd.records import LayerTask

FEWEST_CHANNELS = 8
"""Depthwise filters on fewer channels leave most of a vector unit idle; a stem of an RGB image has three."""


def _skip_reason(layer: keras.layers.Conv2D, calls: int) -> str | None:
    """Say why no block can take this layer's place, whatever it would cost."""
    if calls > 1:
        return f"called {calls} times: one block cannot learn from several inputs"
    if layer.data_format == "channels_first":
        return "channels_first: convert the model to channels_last"
    if layer.strides[0] != layer.strides[1]:
        return f"strides {layer.strides} differ: TensorFlow has no such depthwise convolution"
    return None


def _layer_task(index: int, layer: keras.layers.Conv2D, calls: int, model: keras.Model, block: str) -> LayerTask:
    facts: dict[str, Any] = {
        "index": index,
        "layer_name": layer.name,
        "kernel_size": tuple(layer.kernel_size),
        "strides": tuple(layer.strides),
        "dilation_rate": tuple(layer.dilation_rate),
        "padding": layer.padding,
        "activation": keras.activations.serialize(layer.activation),
        "input_shape": tuple(layer.input.shape[1:]),
        "output_shape": tuple(layer.output.shape[1:]),
        "prefix_macs": count_macs(keras.Model(model.inputs, layer.output)),
        "layer_macs": layer_macs(layer),
        "layer_params": layer.count_params(),
        "use_bias": bool(layer.use_bias),
    }
    reason = _skip_reason(layer, calls)
    if reason is not None:
        return LayerTask(**facts, block_macs=0, block_params=0, skip_reason=reason)
    task = LayerTask(**facts, block_macs=0, block_params=0)
    built = blocks.build_block(block, task, seed=0)
    return LayerTask(**facts, block_macs=count_macs(built), block_params=count_params(built))


def _unprofitable(task: LayerTask) -> str | None:
    """Say why a block would make the network no cheaper."""
    if task.block_macs >= task.layer_macs:
        return f"its block costs {task.block_macs:,} multiply-accumulates, the layer {task.layer_macs:,}"
    if task.input_shape[-1] < FEWEST_CHANNELS:
        return f"input channels: {task.input_shape[-1]}; depthwise filters are faster from {FEWEST_CHANNELS} on"
    return None


def _selected(name: str, patterns: Iterable[str]) -> bool:
    wanted = [p for p in patterns if not p.startswith("^")]
    unwanted = [p[1:] for p in patterns if p.startswith("^")]
    return (not wanted or any(fnmatch.fnmatchcase(name, p) for p in wanted)) and not any(
        fnmatch.fnmatchcase(name, p) for p in unwanted
    )


def enumerate_tasks(
    model: keras.Model, block: str, patterns: tuple[str, ...] = (), include_unprofitable: bool = False
) -> tuple[LayerTask, ...]:
    """Return one task for each convolution with a kernel other than 1x1, in graph order; some carry a skip reason.

    Args:
        model: a flat functional model (see `flatten`).
        block: a key of `pbd.blocks.BLOCKS`.
        patterns: globs over layer names; those that begin with ^ exclude.
        include_unprofitable: keep layers whose block costs no fewer multiply-accumulates, or that have few channels.

    Raises:
        BadInputError: there is no convolution to replace.
        UsageError: a pattern matches no convolution.
    """
    found = find_convolutions(model)
    if not found:
        raise BadInputError(
            f"the teacher must have a convolution with a kernel other than 1x1. Received: {model.name!r} with none."
        )
    names = [layer.name for layer, _ in found]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern.removeprefix("^")) for name in names):
            raise UsageError(unknown_name("layer or pattern", pattern, names))
    tasks = []
    for index, (layer, calls) in enumerate(found):
        task = _layer_task(index, layer, calls, model, block)
        reason = task.skip_reason
        if not _selected(layer.name, patterns):
            reason = "excluded by --layers"
        elif reason is None and not include_unprofitable:
            reason = _unprofitable(task)
        tasks.append(LayerTask(**{**vars(task), "skip_reason": reason}))
    if all(task.skip_reason for task in tasks):
        raise BadInputError(
            f"no convolution is left to replace. First reason: {tasks[0].layer_name}: {tasks[0].skip_reason}. "
            "See --layers and --include-unprofitable."
        )
    return tuple(tasks)
