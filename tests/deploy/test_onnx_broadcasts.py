"""Constants of ONNX files are repeated where ONNX Runtime would broadcast them in short runs."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pbd.deploy.runtimes import onnx_broadcasts  # noqa: E402

pytestmark = pytest.mark.fast


def model(nodes: list, constants: dict[str, np.ndarray], shape: tuple[object, ...]) -> "onnx.ModelProto":
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    stored = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "network", tensors[:1], tensors[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(network: "onnx.ModelProto", x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(network.SerializeToString()).run(None, {"x": x})[0]


def shapes(network: "onnx.ModelProto") -> list[list[int]]:
    return [list(constant.dims) for constant in network.graph.initializer]


def test_a_normalisation_computes_the_same_with_constants_for_every_column() -> None:
    draws = np.random.default_rng(0)
    nodes = [helper.make_node("Sub", ["x", "mean"], ["centred"]), helper.make_node("Mul", ["scale", "centred"], ["y"])]
    constants = {"mean": draws.uniform(90, 130, 3), "scale": draws.uniform(0.01, 0.02, (1, 1, 1, 3))}
    network = model(nodes, constants, ("batch", 6, 5, 3))
    x = draws.uniform(0, 255, (2, 6, 5, 3)).astype(np.float32)
    before = outputs(network, x)
    onnx_broadcasts.lengthen(network)
    onnx.checker.check_model(network)
    assert shapes(network) == [[5, 3], [5, 3]]
    assert np.array_equal(outputs(network, x), before)


def test_a_constant_that_others_use_too_stays_for_them() -> None:
    """Also for the branches of a condition."""
    value = [helper.make_tensor_value_info("branch", TensorProto.FLOAT, ["batch", 6, 5, 3])]
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["x", "c"], ["branch"])], name, [], value)
        for name, kind in (("then", "Mul"), ("else", "Add"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["chosen"], **branches),
        helper.make_node("Sub", ["x", "c"], ["difference"]),
        helper.make_node("Add", ["chosen", "difference"], ["y"]),
    ]
    network = model(nodes, {"c": np.arange(3)}, ("batch", 6, 5, 3))
    x = np.random.default_rng(0).uniform(1, 2, (2, 6, 5, 3)).astype(np.float32)
    before = outputs(network, x)
    onnx_broadcasts.lengthen(network)
    assert shapes(network) == [[3], [5, 3]]
    assert np.array_equal(outputs(network, x), before)


@pytest.mark.parametrize(
    ("shape", "constant"),
    [
        (("batch", 6, 5, 3), np.ones(())),  # one number: no runs
        (("batch", 6, 5, 3), np.ones((6, 1, 1))),  # for rows, not for channels
        (("batch", 6, 5, 3), np.ones((5, 3))),  # long already
        (("batch", 6, 5, 96), np.arange(96)),  # long enough
        (("batch", 6, "width", 3), np.arange(3)),  # of a width that is not known
        (("batch", 3), np.arange(3)),  # not maps
    ],
)
def test_what_gains_nothing_stays_as_it_is(shape: tuple[object, ...], constant: np.ndarray) -> None:
    network = model([helper.make_node("Add", ["x", "c"], ["y"])], {"c": constant}, shape)
    onnx_broadcasts.lengthen(network)
    assert shapes(network) == [list(constant.shape)]
