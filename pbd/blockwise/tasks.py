"""The tasks of a run: each design for every layer that it can replace, with the reason if it is skipped."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras

from pbd import blocks
from pbd.blocks import BlockDesign
from pbd.config import patterns as name_patterns
from pbd.errors import BadInputError
from pbd.networks import channels
from pbd.networks.cost import count_macs, count_macs_before, count_params, layer_macs
from pbd.networks.graph import find_convolutions
from pbd.networks.residuals import Residual, find_residuals
from pbd.records import CONVOLUTION, RESIDUAL, BlockTask, Layer

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_WANTED = {CONVOLUTION: "a convolution with a kernel other than 1x1", RESIDUAL: "a residual block"}


def enumerate_tasks(
    model: keras.Model,
    *designs: BlockDesign,
    patterns: tuple[str, ...] = (),
    include_unprofitable: bool = False,
) -> tuple[BlockTask, ...]:
    """Return the tasks of each layer, in graph order; some carry a skip reason.

    Layers are the convolutions with a kernel other than 1x1 and, if a design replaces them, the residual blocks.

    Args:
        model: a flat functional model (see `graph.flatten`).
        designs: the replacement designs; each makes one task for a layer of its kind, in this order.
        patterns: globs over layer names; a pattern that begins with ^ excludes layers.
        include_unprofitable: also train blocks that have at least as many multiply-accumulates as their layer, or that
            would not be faster.

    Raises:
        BadInputError: the model has no layer to replace.
        UsageError: a pattern matches no layer.
    """
    kinds = {design.replaces for design in designs}
    layers = _layers(model, kinds)
    if not layers:
        needed = " or ".join(_WANTED[kind] for kind in _WANTED if kind in kinds)
        raise BadInputError(
            f"the teacher must have {needed}. Received: {model.name!r} with none. "
            "Give another teacher: there is nothing to replace in this one."
        )
    name_patterns.check(patterns, [layer.name for layer, _ in layers])
    sizes = _BlockSizes()
    tasks = tuple(
        _task(layer, reason, design, sizes, patterns, include_unprofitable)
        for layer, reason in layers
        for design in designs
        if design.replaces == layer.kind
    )
    if all(task.skip_reason for task in tasks):
        first = next((task for task in tasks if name_patterns.selects(patterns, task.layer.name)), tasks[0])
        raise BadInputError(
            f"no convolution is left to replace. First reason: {first.layer.name}: {first.skip_reason}. "
            "See --layers and --include-unprofitable."
        )
    return tasks


def _layers(model: keras.Model, kinds: set[str]) -> list[tuple[Layer, str | None]]:
    """Return the layers of these kinds in graph order, with the reason why no block can replace them, if any."""
    convolutions = {layer.name: (layer, calls) for layer, calls in find_convolutions(model) if CONVOLUTION in kinds}
    residuals = find_residuals(model) if RESIDUAL in kinds else {}
    places = _Places(model, residuals)
    layers: list[tuple[Layer, str | None]] = []
    for operation in model.operations:
        if operation.name in convolutions:
            layer, calls = convolutions[operation.name]
            layers.append((describe_layer(len(layers), layer, model), _reason(layer, calls)))
        elif operation.name in residuals:
            layers.append((describe_residual(len(layers), residuals[operation.name], model), None))
    return [(places.add_to(layer), reason) for layer, reason in layers]


def _reason(layer: keras.layers.Conv2D, calls: int) -> str | None:
    """Return why no block of any design can replace a convolution; `None` if one can."""
    if type(layer) is not keras.layers.Conv2D:
        return f"{type(layer).__name__}: a subclass of Conv2D may compute something else"
    if isinstance(layer.activation, keras.layers.PReLU) or getattr(layer.activation, "weights", None):
        return "its activation has weights: make the activation a layer behind the convolution"
    return f"called {calls} times: one block cannot learn from several inputs" if calls > 1 else None


def other_convolutions(model: keras.Model, tasks: Sequence[BlockTask]) -> tuple[Layer, ...]:
    """Return the convolutions without a task, 1x1 ones included, that depend on the choice of blocks.

    Those inside a residual block are removed if a block replaces it; those whose filters only one layer with a task
    reads become narrower if its block reads fewer.

    Args:
        model: the network of the tasks.
        tasks: the result of `enumerate_tasks`.
    """
    replaceable = {task.layer.name for task in tasks if task.layer.kind == RESIDUAL and task.skip_reason is None}
    residuals = {name: residual for name, residual in find_residuals(model).items() if name in replaceable}
    places = _Places(model, residuals)
    with_task = {task.layer.name for task in tasks}
    producers = {task.layer.producer for task in tasks}
    others = [
        operation
        for operation in model.operations
        if isinstance(operation, _CONVOLUTIONS) and operation.name not in with_task
        if places.inside[operation.name] or operation.name in producers
    ]
    return tuple(
        places.add_to(describe_layer(index, layer, model)) for index, layer in enumerate(others, start=len(with_task))
    )


class _Places:
    """Where layers are: the residual blocks around them, and the convolutions whose filters only they read."""

    def __init__(self, model: keras.Model, residuals: Mapping[str, Residual]) -> None:
        self._producers = {reader: producer for producer, reader in channels.reader_of(model).items()}
        self.inside: dict[str, tuple[str, ...]] = collections.defaultdict(tuple)
        for name, residual in residuals.items():
            for each in residual.operations:
                self.inside[each.name] += (name,)

    def add_to(self, layer: Layer) -> Layer:
        return replace(layer, inside=self.inside[layer.name], producer=self._producers.get(layer.name, ""))


def describe_layer(index: int, layer: keras.layers.Conv2D, model: keras.Model) -> Layer:
    """Return the record of a convolution, the `index`-th layer of the model."""
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
        prefix_macs=count_macs_before(model, layer.output),
        macs=layer_macs(layer),
        params=layer.count_params(),
        use_bias=bool(layer.use_bias),
        data_format=layer.data_format,
        dtype=layer.dtype_policy.name,
    )


def describe_residual(index: int, residual: Residual, model: keras.Model) -> Layer:
    """Return the record of a residual block, the `index`-th layer of the model."""
    inputs, outputs = residual.input.shape[1:], residual.addition.output.shape[1:]
    last = next(each for each in reversed(residual.operations) if isinstance(each, keras.Layer))
    return Layer(
        index=index,
        name=residual.addition.name,
        kernel_size=(3, 3),
        strides=(-(-inputs[0] // outputs[0]), -(-inputs[1] // outputs[1])),
        dilation_rate=(1, 1),
        padding="same",
        activation="linear",
        input_shape=tuple(inputs),
        output_shape=tuple(outputs),
        prefix_macs=count_macs_before(model, residual.addition.output),
        macs=residual.macs,
        params=residual.params,
        use_bias=True,
        dtype=last.dtype_policy.name,
        kind=RESIDUAL,
    )


class _BlockSizes:
    """Sizes of blocks, counted once for all layers of a network that are alike."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}

    def of(self, design: BlockDesign, layer: Layer) -> tuple[int, int]:
        """Return the multiply-accumulates and the parameters of the design's block for a layer."""
        key = (design.name, repr(layer.without_place()))  # an activation may be a dictionary
        if key not in self._sizes:
            block = blocks.outline(design, layer)
            self._sizes[key] = count_macs(block), count_params(block)
        return self._sizes[key]


def _task(
    layer: Layer,
    reason: str | None,
    design: BlockDesign,
    sizes: _BlockSizes,
    patterns: Sequence[str],
    include_unprofitable: bool,
) -> BlockTask:
    macs = params = 0
    reason = reason or design.applies_to(layer)
    if reason is None:
        macs, params = sizes.of(design, layer)
    if not name_patterns.selects(patterns, layer.name):
        reason = "excluded by --layers"
    elif reason is None and not include_unprofitable:
        reason = _costs_more(layer, macs) or design.unprofitable(layer)
    return BlockTask(layer, design.name, macs, params, reason)


def _costs_more(layer: Layer, block_macs: int) -> str | None:
    if block_macs < layer.macs:
        return None
    return f"its block costs {block_macs:,} multiply-accumulates, the layer {layer.macs:,}"
