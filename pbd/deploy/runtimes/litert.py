"""LiteRT files (.tflite), run by LiteRT's interpreter."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base, litert_files
from pbd.deploy.runtimes.saved_model import SavedModel

_NOT_QUANTIZED = "no_quantize"
_BATCH = 64


class LiteRt(base.QuantizingRuntime):
    """LiteRT on the CPU, with XNNPACK."""

    name = "litert"
    suffix = ".tflite"
    extra = "litert"
    packages = ("tensorflow", "ai_edge_litert")
    packages_to_run = ("ai_edge_litert.interpreter",)
    quantizing_packages = ("ai_edge_quantizer",)
    rounds_outputs = True  # fully connected layers of integers have no other outputs

    def export(self, network: Any, path: Path) -> None:
        _convert(network, path)

    def load(self, path: Path, threads: int) -> base.Runner:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=threads)
        source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        interpreter.allocate_tensors()
        shape: tuple[int, ...] = ()

        def run(images: np.ndarray) -> np.ndarray:
            nonlocal shape
            if images.shape != shape:
                interpreter.resize_tensor_input(source, images.shape)
                interpreter.allocate_tensors()
                shape = images.shape
            interpreter.set_tensor(source, images)
            interpreter.invoke()
            return interpreter.get_tensor(result)

        return run

    def for_int8(self, network: Any) -> Any:
        from pbd.deploy.runtimes import litert_activations  # loads Keras

        return litert_activations.for_int8(network)

    def quantize(self, source: Path, path: Path, images: np.ndarray, kept_float: Mapping[str, np.ndarray]) -> None:
        """Write a file of 8-bit integer operations with float32 inputs and outputs."""
        from ai_edge_quantizer import quantizer, recipe
        from ai_edge_quantizer.qtyping import TFLOperationName as Operation

        process = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        for operation in (Operation.INPUT, Operation.OUTPUT):
            process.update_quantization_recipe(".*", operation, algorithm_key=_NOT_QUANTIZED)
        for scope in _scopes_of(source, kept_float):
            process.update_quantization_recipe(re.escape(scope), Operation.ALL_SUPPORTED, algorithm_key=_NOT_QUANTIZED)
        process.quantize(_ranges(process, source, images)).export_model(str(path), overwrite=True)
        litert_files.compact(path)

    def export_fake_quantized(self, network: Any, path: Path, kernels: Mapping[str, np.ndarray]) -> None:
        """Write a file of 8-bit integer operations; the converter rounds the kernels again, to the same values."""
        import tensorflow as tf

        _convert(network, path, [tf.lite.Optimize.DEFAULT])
        litert_files.compact(path)


def _convert(network: Any, path: Path, optimizations: Sequence[Any] = ()) -> None:
    """Write a network as a LiteRT file."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        # A file made from a SavedModel has a signature, by which the quantiser gives it images.
        SavedModel().export(network, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = list(optimizations)
        path.write_bytes(converter.convert())


def _ranges(process: Any, source: Path, images: np.ndarray) -> dict[str, Any]:
    """Return the smallest and the largest value of each tensor.

    Over several samples the quantiser takes a moving average of them, which clips: so each batch is one sample of a
    calibration of its own.

    Args:
        process: the quantiser, with its recipe.
        source: the float32 file.
        images: (n, height, width, channels).
    """
    from ai_edge_litert.interpreter import Interpreter

    ((signature, tensors),) = Interpreter(str(source)).get_signature_list().items()
    (name,) = tensors["inputs"]
    ranges: dict[str, Any] = {}
    for batch in np.split(images, range(_BATCH, len(images), _BATCH)):
        for tensor, range_ in process.calibrate({signature: [{name: batch}]}).items():
            earlier = ranges.setdefault(tensor, range_)
            low, high = np.minimum(earlier["min"], range_["min"]), np.maximum(earlier["max"], range_["max"])
            ranges[tensor] = {**range_, "min": low, "max": high}
    return ranges


def _scopes_of(path: Path, kernels: Mapping[str, np.ndarray]) -> list[str]:
    """Return what the quantiser calls the operations that use one of these kernels."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    if not kernels:
        return []
    model = flatbuffer.read_model(str(path))
    (graph,) = model.subgraphs
    constants = {
        str(number): data
        for number, tensor in enumerate(graph.tensors)
        if (data := flatbuffer.get_tensor_data(tensor, model.buffers)) is not None
    }
    held = {int(name) for name in base.owners(constants, kernels)}
    return [flatbuffer.get_op_scope(each, graph.tensors) for each in graph.operators if held.intersection(each.inputs)]
