"""Constants that an ONNX file adds to images or multiplies them by, in the shape that ONNX Runtime is fastest with.

ONNX Runtime broadcasts over the last axis in runs of its length. A run of the three channels of an image costs about as
much as one of a hundred numbers. Repeating the constants for every column saved 9% of the time of ResNet20 in 8-bit
integers (docs/measurements/2026-11-int8.md).
"""

from typing import Any

import numpy as np

from pbd.deploy.runtimes import onnx_graph

_ELEMENTWISE = ("Add", "Div", "Mul", "Sub")
_SHORT_RUN = 64
"""The length of runs below which they are worth lengthening."""


def lengthen(model: Any) -> None:
    """Repeat each constant that has one number for each entry of a short last axis along the axis before it.

    Args:
        model: an ONNX model of float32, which is changed.
    """
    graph = model.graph
    constants, shapes = onnx_graph.constants(graph), _shapes(model)
    repeated: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type not in _ELEMENTWISE:
            continue
        for index, maps in enumerate(reversed(node.input)):
            constant, shape = constants.get(node.input[index]), shapes.get(maps, ())
            if constant is None or not _is_short(constant, shape):
                continue
            name = f"{node.input[index]}/{shape[-2]}_columns"
            repeated[name] = np.tile(constant.reshape(1, -1), (shape[-2], 1))
            node.input[index] = name
    onnx_graph.replace_constants(graph, repeated)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name; 0 stands for an unknown length."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        each.name: tuple(dimension.dim_value for dimension in each.type.tensor_type.shape.dim)
        for each in (*graph.input, *graph.value_info)
    }


def _is_short(constant: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether the constant has one number for each entry of the last, short axis of maps of this shape."""
    if len(shape) != 4 or shape[-2] < 2 or not 1 < shape[-1] < _SHORT_RUN:
        return False
    return constant.size == shape[-1] and constant.ndim <= 4 and constant.shape[-1:] == shape[-1:]
