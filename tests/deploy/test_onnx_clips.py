"""Clipped activations of ONNX files become one operation, which computes the same."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pbd.deploy.runtimes import onnx_clips  # noqa: E402

pytestmark = pytest.mark.fast
X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


def model(nodes: list[tuple[str, list[str], str]], **constants: list[float] | float) -> "onnx.ModelProto":
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.array(values, np.float32), name) for name, values in constants.items()]
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    graph = helper.make_graph(made, "network", tensors[:1], tensors[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fused(network: "onnx.ModelProto") -> list[str]:
    """Return the operations after fusing; check that they compute what was computed before."""
    before, after = network, type(network)()
    after.CopyFrom(network)
    onnx_clips.fuse(after)
    onnx.checker.check_model(after)
    expected, outputs = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"x": X})[0] for each in (before, after)
    )
    assert np.array_equal(outputs, expected)
    used = {name for node in after.graph.node for name in node.input}
    assert {constant.name for constant in after.graph.initializer} <= used
    return [node.op_type for node in after.graph.node]


CLIPPED = [("Min", ["r", "high"], "m"), ("Max", ["low", "m"], "y")]
RECTIFIED = [("Relu", ["x"], "r"), *CLIPPED]


def test_a_relu_with_a_ceiling_is_one_operation() -> None:
    assert fused(model(RECTIFIED, high=[[0.99]], low=[[0.0]])) == ["Clip"]


def test_other_limits() -> None:
    assert fused(model([("Neg", ["x"], "r"), *CLIPPED], high=1.5, low=-0.5)) == ["Neg", "Clip"]
    assert fused(model(RECTIFIED, high=1.5, low=-0.5)) == ["Relu", "Clip"]


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-1.0, -0.5), (0.5, -1.0)])
def test_limits_that_8_bits_do_not_impose_stay(low: float, high: float) -> None:
    nodes = [("Neg", ["x"], "r"), *CLIPPED]
    assert fused(model(nodes, high=high, low=low)) == ["Neg", "Min", "Max"]


def test_what_others_read_stays() -> None:
    nodes = [("Relu", ["x"], "r"), ("Min", ["r", "high"], "m"), ("Max", ["low", "m"], "c"), ("Add", ["c", "r"], "y")]
    assert fused(model(nodes, high=1.0, low=0.0)) == ["Relu", "Clip", "Add"]
    nodes[-1] = ("Add", ["c", "m"], "y")
    assert fused(model(nodes, high=1.0, low=0.0)) == ["Relu", "Min", "Max", "Add"]


@pytest.mark.parametrize(("high", "low"), [([1.0, 2.0, 1.0, 2.0], 0.0), (1.0, [0.0, 0.1, 0.0, 0.1])])
def test_limits_of_several_numbers_stay(high: list[float] | float, low: list[float] | float) -> None:
    assert fused(model(RECTIFIED, high=high, low=low)) == ["Relu", "Min", "Max"]
