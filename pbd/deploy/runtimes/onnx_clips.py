"""Clipped activations of an ONNX file as the one operation that ONNX Runtime fuses.

A `ReLU` with another ceiling than 6 is exported as three operations. Two of them stayed in float32 between 8-bit
integers and took 40% of the time of a network of such activations (docs/measurements/2026-11-int8.md).
"""

from typing import Any

import numpy as np

from pbd.deploy.runtimes import onnx_graph


def fuse(model: Any) -> None:
    """Replace max(min(x, high), low) by clip(x, low, high) if low <= 0 <= high; a ReLU before it goes if low = 0.

    Other clips stay: the quantiser removes a clip, since 8-bit integers saturate, but their ranges always contain 0.

    Args:
        model: an ONNX model of float32, which is changed.
    """
    import onnx

    graph = model.graph
    constants, reads = onnx_graph.constants(graph), onnx_graph.reads(graph)
    producers = {output: node for node in graph.node for output in node.output}
    limits = dict[str, np.ndarray]()
    for upper in [node for node in graph.node if node.op_type == "Max"]:
        low, clipped = _number_and_other(upper, constants)
        lower = producers.get(clipped)
        if lower is None or lower.op_type != "Min" or reads[clipped] > 1:
            continue
        high, source = _number_and_other(lower, constants)
        if low is None or high is None or not low <= 0 <= high:
            continue
        replaced, rectified = [lower], producers.get(source)
        if rectified is not None and rectified.op_type == "Relu" and reads[source] == 1 and low == 0:
            replaced.append(rectified)
            source = rectified.input[0]
        names = [f"{upper.output[0]}/{limit}" for limit in ("low", "high")]
        limits |= dict(zip(names, (low, high), strict=True))
        upper.CopyFrom(onnx.helper.make_node("Clip", [source, *names], [upper.output[0]], name=upper.name))
        for node in replaced:
            graph.node.remove(node)
    onnx_graph.replace_constants(graph, limits)


def _number_and_other(node: Any, constants: dict[str, np.ndarray]) -> tuple[np.ndarray | None, str]:
    """Return the one number among the two inputs of a node, `None` if there is not exactly one, and the other input."""
    numbers = [name for name in node.input if name in constants and constants[name].size == 1]
    if len(node.input) != 2 or len(numbers) != 1:
        return None, node.input[0]
    (other,) = [name for name in node.input if name != numbers[0]]
    return constants[numbers[0]].reshape(()), other
