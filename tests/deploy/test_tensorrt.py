"""Files for TensorRT: what it can read, and a script that is said not to have been run."""

import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

import pbd
from pbd.deploy import targets
from pbd.deploy.exporting import files_of
from pbd.errors import BadInputError, UsageError
from tests.deploy.small_networks import classifier, data, images

pytestmark = pytest.mark.skipif(targets.TARGETS["tensorrt"].obstacle() is not None, reason="ONNX Runtime is absent")


NAME = "my model.onnx"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, path = classifier(), tmp_path_factory.mktemp("int8") / NAME
    return pbd.quantize(model, data(model), path, "tensorrt-int8", max_drop=1.0).path


def test_int8_files_are_symmetric_and_biases_stay_float32(quantized: Path) -> None:
    import onnx

    graph = onnx.load(quantized).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any(), "zero points are 0"
    assert not any(constant.dtype == np.int32 and constant.size > 4 for constant in constants.values()), "no int32 bias"


@pytest.mark.parametrize(("target", "flag"), [("tensorrt", "--fp16"), ("tensorrt-int8", "--int8 --fp16")])
def test_a_script_builds_the_engines(target: str, flag: str, quantized: Path, tmp_path: Path) -> None:
    written = pbd.export(classifier(), tmp_path / NAME, target).path if target == "tensorrt" else quantized
    _, script = files_of(written)
    assert script.name == "my model.trtexec.sh"
    assert "has NOT run this script" in script.read_text()
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    lines = subprocess.run([script], capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert lines[: len(lines) // 2] == [
        "--onnx=my model.onnx",
        *flag.split(),
        "--shapes=image:1x8x8x3",
        "--saveEngine=my model.batch1.engine",
    ]
    assert "--shapes=image:32x8x8x3" in lines


def test_the_script_of_an_earlier_file_goes_with_it(tmp_path: Path) -> None:
    pbd.export(classifier(), tmp_path / "a.onnx", "tensorrt")
    assert (tmp_path / "a.trtexec.sh").is_file()
    pbd.export(classifier(), tmp_path / "a.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_network_for_images_of_any_size_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs)))
    with pytest.raises(BadInputError, match="TensorRT needs images of one size"):
        pbd.export(model, tmp_path / "a.onnx", "tensorrt", check=images(4))


def test_latency_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is only written here"):
        pbd.measure_latency({"model": classifier()}, targets=["tensorrt"])


def test_a_network_that_is_trained_for_8_bit_integers_is_refused_before_the_training(tmp_path: Path) -> None:
    model = classifier()
    with pytest.raises(UsageError, match="Use method ptq, or choose from: openvino-int8, onnx-int8, litert"):
        pbd.quantize(model, data(model), tmp_path / "a.onnx", "tensorrt-int8", method="qat")
    with pytest.raises(UsageError, match="method qat"):
        pbd.Quantize(target="tensorrt-int8", method="qat")
