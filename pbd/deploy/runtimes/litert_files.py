"""LiteRT files with less beside the weights: equal vectors are stored once, and inner tensors have no names."""

from pathlib import Path
from typing import Any

import numpy as np

_LARGEST_BYTES = 2**30
"""Larger files are left as they are: a flat buffer holds at most 2 GiB."""
_IDENTIFIER = b"TFL3"


def compact(path: Path) -> None:
    """Make a file smaller; it computes the same.

    A scale for each output channel comes with as many zero points, for the kernel and again for the bias. They are all
    0, and take 16 bytes for each channel: more than a depthwise kernel. The names of the inputs and outputs are kept.

    Args:
        path: the path of a file of 8-bit integers, which is replaced.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    if path.stat().st_size > _LARGEST_BYTES:
        return
    model = flatbuffer.read_model(str(path))
    for graph in model.subgraphs:
        kept = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in kept:
                tensor.name = None
            if tensor.shape is not None:
                tensor.shape = np.asarray(tensor.shape, np.int32)
            if tensor.quantization is not None:
                _as_arrays(tensor.quantization)
    builder = _sharing_builder()
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(builder.Output())


def _as_arrays(quantization: Any) -> None:
    """Make arrays of the lists of a tensor's quantisation, which the builder shares; remove the calibrated range."""
    quantization.min = quantization.max = None
    if quantization.scale is not None:
        quantization.scale = np.asarray(quantization.scale, np.float32)
    if quantization.zeroPoint is not None:
        quantization.zeroPoint = np.asarray(quantization.zeroPoint, np.int64)


def _sharing_builder() -> Any:
    """Return a builder of flat buffers that stores equal arrays once."""
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        def __init__(self) -> None:
            super().__init__(1024)
            self._offsets: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            key = x.dtype.str, x.tobytes()
            if key not in self._offsets:
                self._offsets[key] = super().CreateNumpyVector(x)
            return self._offsets[key]

    return SharingBuilder()
