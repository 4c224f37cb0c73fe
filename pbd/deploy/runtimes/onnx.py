"""ONNX files, run by ONNX Runtime."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base, onnx_broadcasts, onnx_clips, onnx_graph, onnx_kernels, onnx_outputs
from pbd.system import processor

OPSET = 17
_BATCH = 32
_REDUCED_LIMIT = 64
"""The limit of kernels whose products with uint8 cannot overflow 16 bits in pairs; ONNX Runtime takes the same."""


class Onnx(base.QuantizingRuntime):
    """ONNX Runtime on the CPU."""

    name = "onnx"
    suffix = ".onnx"
    extra = "onnx"
    packages = ("tensorflow", "tf2onnx", "onnx", "onnxruntime")
    packages_to_run = ("onnxruntime",)
    quantizing_packages: tuple[str, ...] = ()

    def export(self, network: Any, path: Path) -> None:
        import tf2onnx

        from pbd.deploy import portable  # loads Keras

        function = portable.as_function(network)
        proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
        for tensor in (*proto.graph.input, *proto.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
        _replace_erfc(proto.graph)
        onnx_clips.fuse(proto)
        onnx_broadcasts.lengthen(proto)
        path.write_bytes(proto.SerializeToString())

    def load(self, path: Path, threads: int) -> base.Runner:
        onnxruntime = base.load_package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]

    def quantize(self, source: Path, path: Path, images: np.ndarray, kept_float: Mapping[str, np.ndarray]) -> None:
        """Write a QDQ file: weights int8 and symmetric, activations uint8, outputs float32.

        Sums of uint8 times int8 products can overflow 16 bits on x86 without VNNI, so weights have 7 bits there.
        """
        import onnx

        quantization = base.load_package("onnxruntime.quantization")
        shape_inference = base.load_package("onnxruntime.quantization.shape_inference")
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                _reader(prepared, images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_not_quantized(prepared, kept_float),
                **self.settings(),
            )
        model = onnx.load(path)
        onnx_outputs.keep_exact(model)
        onnx.save(model, path)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the quantiser that depend on the runtime."""
        quantization = base.load_package("onnxruntime.quantization")
        reduce_range = not processor.has_int8_dot_products()
        return {"activation_type": quantization.QuantType.QUInt8, "reduce_range": reduce_range}

    def export_fake_quantized(self, network: Any, path: Path, kernels: Mapping[str, np.ndarray]) -> None:
        """Write a QDQ file: weights int8 and symmetric, activations uint8."""
        import onnx

        self.export(network, path)
        model = onnx.load(path)
        onnx_kernels.quantize(model, kernels, self.kernel_limit)
        onnx.save(model, path)

    @property
    def kernel_limit(self) -> int:
        """The largest integer of kernels: 7 bits where sums can overflow, see `quantize`."""
        return base.KERNEL_LIMIT if processor.has_int8_dot_products() else _REDUCED_LIMIT


def _replace_erfc(graph: Any) -> None:
    """Replace erfc(x) by 1 - erf(x): tf2onnx writes a node for it, of the exact GELU, that ONNX does not have."""
    import onnx

    nodes = list(graph.node)
    if not any(node.op_type == "Erfc" for node in nodes):
        return
    constant = onnx.helper.make_tensor("pbd_one", onnx.TensorProto.FLOAT, [], [1.0])
    graph.initializer.append(constant)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "Erfc":
            graph.node.append(node)
            continue
        (source,), (result,), erf = node.input, node.output, f"{node.name}_erf"
        graph.node.append(onnx.helper.make_node("Erf", [source], [erf], name=erf))
        graph.node.append(onnx.helper.make_node("Sub", [constant.name, erf], [result], name=node.name))


def _reader(path: Path, images: np.ndarray) -> Any:
    """Return what ONNX Runtime reads calibration images from."""
    import onnx

    quantization: Any = base.load_package("onnxruntime.quantization")
    name = onnx.load(path, load_external_data=False).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.split(images, range(_BATCH, len(images), _BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def _not_quantized(path: Path, kernels: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the nodes that use one of these kernels, or clip the outputs."""
    import onnx

    model = onnx.load(path)
    held = base.owners(onnx_graph.constants(model.graph), kernels)
    users = [node.name for node in model.graph.node if held.intersection(node.input)]
    return [*users, *onnx_outputs.clipping(model)]
