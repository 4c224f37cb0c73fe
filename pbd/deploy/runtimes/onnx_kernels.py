"""Kernels of an ONNX file in 8-bit integers, where its activations are quantised already."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base, onnx_graph

_MOVING = ("Flatten", "Pad", "Reshape", "Squeeze", "Transpose")
"""Operations that keep the values of their input."""


def quantize(model: Any, kernels: Mapping[str, np.ndarray], limit: int) -> None:
    """Store these kernels as int8, with one scale for each output channel, and the biases beside them as int32.

    Args:
        model: an ONNX model, which is changed.
        kernels: the kernels by layer.
        limit: the largest integer of a kernel.
    """
    graph = _Graph(model)
    held = base.owners(graph.constants, kernels)
    for node in list(model.graph.node):
        if node.op_type in ("Conv", "MatMul") and node.input[1] in held:
            graph.quantize(node, limit)
    graph.write()


class _Graph:
    """The nodes of an ONNX model, and the nodes and constants that replace some of them."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._graph = model.graph
        self.constants = onnx_graph.constants(model.graph)
        self._producers = {output: node for node in model.graph.node for output in node.output}
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
        self._ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in inferred}
        self._new_constants: dict[str, np.ndarray] = {}
        self._before: dict[str, list[Any]] = {}
        """Nodes to insert before others, by the first output of these."""

    def quantize(self, node: Any, limit: int) -> None:
        """Quantise the kernel of a node, and its bias."""
        kernel = self.constants[node.input[1]]
        axis = 0 if node.op_type == "Conv" else kernel.ndim - 1
        scales = base.kernel_scales(kernel, (axis,), limit)
        integers = np.clip(np.rint(kernel / scales), -limit, limit).astype(np.int8)
        node.input[1] = self._dequantized(node, "kernel", integers, scales.ravel(), axis)
        if node.op_type == "MatMul":
            self._fuse_bias(node)
        scale = self._input_scale(node)
        if len(node.input) > 2 and scale is not None:
            bias_scales = scales.ravel() * scale
            bias = np.rint(self.constants[node.input[2]].astype(np.float64) / bias_scales)
            information = np.iinfo(np.int32)
            integers = np.clip(bias, information.min, information.max).astype(np.int32)
            node.input[2] = self._dequantized(node, "bias", integers, bias_scales.astype(np.float32), 0)

    def write(self) -> None:
        """Put the new nodes and constants into the model; remove the constants that nothing uses any more."""
        nodes = [each for node in self._graph.node for each in (*self._before.get(node.output[0], ()), node)]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        onnx_graph.replace_constants(self._graph, self._new_constants)

    def _dequantized(self, node: Any, role: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Insert the dequantisation of a constant before a node; return the name of its output."""
        import onnx

        name = f"{node.output[0]}/{role}"
        parts = {"integers": integers, "scales": scales, "zero_points": np.zeros(scales.shape, integers.dtype)}
        self._new_constants |= {f"{name}/{part}": values for part, values in parts.items()}
        inputs = [f"{name}/{part}" for part in parts]
        dequantize = onnx.helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=axis)
        self._before.setdefault(node.output[0], []).append(dequantize)
        return name

    def _fuse_bias(self, product: Any) -> None:
        """Fuse MatMul and the following bias addition into one Gemm."""
        users = [node for node in self._graph.node if product.output[0] in node.input]
        if self._ranks.get(product.output[0]) != 2 or len(users) != 1 or users[0].op_type != "Add":
            return
        (bias,) = [name for name in users[0].input if name != product.output[0]] or [None]
        if bias not in self.constants or self.constants[bias].ndim != 1:
            return
        waiting = self._before.pop(product.output[0])
        product.op_type = "Gemm"
        product.input.append(bias)
        product.output[0] = users[0].output[0]
        self._before[product.output[0]] = waiting
        self._graph.node.remove(users[0])

    def _input_scale(self, node: Any) -> np.ndarray | None:
        """Return the scale of the activations that a node takes; `None` if they are not quantised."""
        producer = self._producers.get(node.input[0])
        while producer is not None and producer.op_type in _MOVING:
            producer = self._producers.get(producer.input[0])
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        return self.constants[producer.input[1]]
