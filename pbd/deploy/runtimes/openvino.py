"""OpenVINO's intermediate representation: an .xml file and the weights beside it, in a .bin file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base
from pbd.system import processor

_REDUCED_LIMIT = 63
"""The limit of kernels whose products with uint8 cannot overflow 16 bits in pairs."""


class OpenVino(base.QuantizingRuntime):
    """OpenVINO on the CPU."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    packages = ("tensorflow", "openvino")
    packages_to_run = ("openvino",)
    quantizing_packages = ("nncf",)

    def export(self, network: Any, path: Path) -> None:
        base.load_package("openvino").save_model(_converted(network), path, compress_to_fp16=False)

    def load(self, path: Path, threads: int) -> base.Runner:
        """Return the forward pass of a file, compiled for any batch size.

        Compiled for one image and one thread, passes are faster, but OpenVINO 2026.4 computes some networks of 8-bit
        integers wrongly (docs/decisions.md).
        """
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # otherwise float32 layers run in bfloat16 where the CPU can
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = base.load_package("openvino").Core().compile_model(path, "CPU", settings).create_infer_request()

        def run(images: np.ndarray) -> np.ndarray:
            request.infer([images], share_inputs=True)
            return request.get_output_tensor().data.copy()  # the next pass overwrites it

        return run

    def quantize(self, source: Path, path: Path, images: np.ndarray, kept_float: Mapping[str, np.ndarray]) -> None:
        """Write a file with `FakeQuantize` operations, by NNCF.

        Sums of 8-bit products can overflow on x86 without VNNI; only there the first kernel needs 7 bits. (With 7 bits
        for all, the logits of ResNet20 are 9 dB farther from those in float32.)
        """
        openvino, nncf = base.load_package("openvino"), base.load_package("nncf")
        from nncf.quantization.advanced_parameters import OverflowFix
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        model = openvino.Core().read_model(source)
        ignored = _users_of(model, kept_float)
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(images[:, None])),
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(  # its defaults lose 13 to 17 dB on CIFAR-10
                disable_bias_correction=True,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                overflow_fix=OverflowFix.DISABLE if processor.has_int8_dot_products() else OverflowFix.FIRST_LAYER,
            ),
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)

    def export_fake_quantized(self, network: Any, path: Path, kernels: Mapping[str, np.ndarray]) -> None:
        """Write a file with `FakeQuantize` operations, which OpenVINO computes in 8-bit integers."""
        model = _converted(network)
        _quantize_kernels(model, kernels, self.trained_kernel_limit)
        base.load_package("openvino").save_model(model, path, compress_to_fp16=False)

    @property
    def trained_kernel_limit(self) -> int:
        """The largest integer of trained kernels: 7 bits where sums can overflow."""
        return base.KERNEL_LIMIT if processor.has_int8_dot_products() else _REDUCED_LIMIT


def _converted(network: Any) -> Any:
    """Return a network as a model of OpenVINO."""
    from pbd.deploy import portable  # loads Keras

    openvino = base.load_package("openvino")
    model = openvino.convert_model(portable.as_function(network).get_concrete_function())
    # Functions with a gradient of their own, such as SiLU, leave further outputs that nothing uses.
    return openvino.Model([model.outputs[0]], model.get_parameters(), network.name)


def _quantize_kernels(model: Any, kernels: Mapping[str, np.ndarray], limit: int) -> None:
    """Store these kernels as int8 of at most `limit`, times a scale for each output channel, as NNCF does."""
    from openvino import opset13, passes

    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    users = set(_users_of(model, kernels))
    for node in model.get_ops():
        if node.get_friendly_name() not in users:
            continue
        kernel = node.input_value(1).get_node().get_data()
        scales = base.kernel_scales(kernel, _output_axes(node, kernel.ndim), limit)
        integers = opset13.constant(np.rint(kernel / scales).astype(np.int8))
        dequantized = opset13.multiply(opset13.convert(integers, "f32"), opset13.constant(scales))
        node.input(1).replace_source_output(dequantized.output(0))


def _output_axes(node: Any, dimensions: int) -> tuple[int, ...]:
    """Return the axes of a kernel that are output channels."""
    kind = node.get_type_name()
    if kind == "MatMul":
        return (dimensions - 2,) if node.get_attributes()["transpose_b"] else (dimensions - 1,)
    return (0, 1) if kind == "GroupConvolution" else (0,)


def _users_of(model: Any, kernels: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the operations that use one of these kernels."""
    if not kernels:
        return []
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    held = base.owners({name: node.get_data() for name, node in constants.items()}, kernels)
    return sorted(_user(constants[name]).get_friendly_name() for name in held)


def _user(constant: Any) -> Any:
    """Return the operation that uses a constant, behind reshapes and transpositions of its axes."""
    (user,) = {target.get_node() for output in constant.outputs() for target in output.get_target_inputs()}
    return _user(user) if user.get_type_name() in ("Reshape", "Transpose", "Convert", "Unsqueeze") else user
