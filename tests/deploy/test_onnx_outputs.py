"""The outputs of ONNX files in 8-bit integers stay in float32."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from pbd.deploy.runtimes import onnx_outputs  # noqa: E402

pytestmark = pytest.mark.fast


def rounded(name: str, source: str, result: str) -> list:
    """Return the nodes that round a tensor."""
    quantize = helper.make_node("QuantizeLinear", [source, "scale"], [f"{name}_integers"])
    return [quantize, helper.make_node("DequantizeLinear", [f"{name}_integers", "scale"], [result])]


def model(nodes: list) -> "onnx.ModelProto":
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
    return helper.make_model(helper.make_graph(nodes, "network", tensors[:1], tensors[1:], [scale]))


def operations(nodes: list) -> list[str]:
    network = model(nodes)
    onnx_outputs.keep_exact(network)
    onnx.checker.check_model(network)
    used = {name for node in network.graph.node for name in node.input}
    assert {constant.name for constant in network.graph.initializer} <= used
    return [node.op_type for node in network.graph.node]


def test_logits_are_not_rounded() -> None:
    nodes = [*rounded("image", "x", "image"), helper.make_node("Relu", ["image"], ["logits"])]
    assert operations([*nodes, *rounded("logits", "logits", "y")]) == ["QuantizeLinear", "DequantizeLinear", "Relu"]


def test_neither_are_the_probabilities_nor_the_logits_before_them() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["logits"]), *rounded("logits", "logits", "rounded")]
    nodes += [helper.make_node("Softmax", ["rounded"], ["probabilities"]), *rounded("last", "probabilities", "y")]
    assert operations(nodes) == ["Relu", "Softmax"]


def test_what_other_operations_use_too_stays_rounded() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["logits"]), *rounded("logits", "logits", "rounded")]
    nodes += [helper.make_node("Softmax", ["rounded"], ["probabilities"])]
    nodes += [helper.make_node("Mul", ["probabilities", "rounded"], ["y"])]
    assert operations(nodes) == [node.op_type for node in nodes]


def test_activations_that_clip_the_outputs_are_named() -> None:
    limits = [onnx.numpy_helper.from_array(np.float32(each), name) for name, each in (("low", 0), ("high", 1))]
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"], name="inner"),
        helper.make_node("Neg", ["hidden"], ["logits"]),
        helper.make_node("Clip", ["logits", "low", "high"], ["clipped"], name="outer"),
        helper.make_node("Softmax", ["clipped"], ["y"]),
    ]
    network = model(nodes)
    network.graph.initializer.extend(limits)
    assert onnx_outputs.clipping(network) == ["outer"]
