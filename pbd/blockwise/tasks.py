"""The tasks of a run: each design for every convolution with a kernel other than 1x1, with the reason if skipped."""

import fnmatch
from collections.abc import Iterable, Sequence

import keras

from pbd import blocks
from pbd.blocks import BlockDesign
from pbd.errors import BadInputError, UsageError, unknown_name
from pbd.networks.cost import count_macs, count_params, layer_macs
from pbd.networks.graph import find_convolutions
from pbd.records import BlockTask, Layer


def enumerate_tasks(
    model: keras.Model,
    *designs: BlockDesign,
    patterns: tuple[str, ...] = (),
    include_unprofitable: bool = False,
) -> tuple[BlockTask, ...]:
    """Return the tasks of each convolution with a kernel other than 1x1, in graph order; some carry a skip reason.

    Args:
        model: a flat functional model (see `graph.flatten`).
        designs: the replacement designs; each makes one task for a layer, in this order.
        patterns: globs over layer names; a pattern that begins with ^ excludes layers.
        include_unprofitable: also train blocks that have at least as many multiply-accumulates as their layer, or that
            would not be faster.

    Raises:
        BadInputError: the model has no convolution to replace.
        UsageError: a pattern matches no convolution.
    """
    convolutions = find_convolutions(model)
    if not convolutions:
        raise BadInputError(
            f"the teacher must have a convolution with a kernel other than 1x1. Received: {model.name!r} with none. "
            "Give another teacher: there is nothing to replace in this one."
        )
    _check_patterns(patterns, [layer.name for layer, _ in convolutions])
    layers = [(describe_layer(index, layer, model), calls) for index, (layer, calls) in enumerate(convolutions)]
    tasks = tuple(
        _task(layer, calls, design, patterns, include_unprofitable) for layer, calls in layers for design in designs
    )
    if all(task.skip_reason for task in tasks):
        raise BadInputError(
            f"no convolution is left to replace. First reason: {tasks[0].layer.name}: {tasks[0].skip_reason}. "
            "See --layers and --include-unprofitable."
        )
    return tasks


def describe_layer(index: int, layer: keras.layers.Conv2D, model: keras.Model) -> Layer:
    """Return the record of a convolution, the `index`-th of the model."""
    return Layer(
        index=index,
        name=layer.name,
        kernel_size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        dilation_rate=tuple(layer.dilation_rate),
        padding=layer.padding,
        activation=keras.activations.serialize(layer.activation),
        input_shape=tuple(layer.input.shape[1:]),
        output_shape=tuple(layer.output.shape[1:]),
        prefix_macs=count_macs(keras.Model(model.inputs[0], layer.output)),
        macs=layer_macs(layer),
        params=layer.count_params(),
        use_bias=bool(layer.use_bias),
        data_format=layer.data_format,
        dtype=layer.dtype_policy.name,
    )


def _task(
    layer: Layer, calls: int, design: BlockDesign, patterns: Sequence[str], include_unprofitable: bool
) -> BlockTask:
    macs = params = 0
    reason = f"called {calls} times: one block cannot learn from several inputs" if calls > 1 else None
    reason = reason or design.applies_to(layer)
    if reason is None:
        block = blocks.build_block(design, layer, seed=0)
        macs, params = count_macs(block), count_params(block)
    if not _selected(layer.name, patterns):
        reason = "excluded by --layers"
    elif reason is None and not include_unprofitable:
        reason = _costs_more(layer, macs) or design.unprofitable(layer)
    return BlockTask(layer, design.name, macs, params, reason)


def _costs_more(layer: Layer, block_macs: int) -> str | None:
    if block_macs < layer.macs:
        return None
    return f"its block costs {block_macs:,} multiply-accumulates, the layer {layer.macs:,}"


def _check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern.removeprefix("^")) for name in names):
            mark = "^" if pattern.startswith("^") else ""
            raise UsageError(unknown_name("layer or pattern", pattern, [mark + name for name in names]))


def _selected(name: str, patterns: Sequence[str]) -> bool:
    included = [pattern for pattern in patterns if not pattern.startswith("^")]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("^")]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded):
        return False
    return not included or any(fnmatch.fnmatchcase(name, pattern) for pattern in included)
