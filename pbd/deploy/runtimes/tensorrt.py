"""ONNX files for TensorRT, with a script that builds and times the engine on a machine with a GPU.

TensorRT is not installable from the package registry, so pbd never runs it: files are compared with Keras in ONNX
Runtime, and the script is labelled as not run.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes.base import KERNEL_LIMIT, load_package
from pbd.deploy.runtimes.onnx import Onnx
from pbd.errors import BadInputError

SCRIPT_SUFFIX = ".trtexec.sh"
_SCRIPT = """#!/bin/sh
# Builds a TensorRT engine from {name} and times it. pbd has NOT run this script: it needs TensorRT and a GPU.
set -eu
cd "$(dirname "$0")"
for batch in 1 32; do
    trtexec --onnx={name} {precision} --shapes=image:"$batch"x{height}x{width}x{channels} \\
        --saveEngine={stem}.batch"$batch".engine
done
"""


class TensorRt(Onnx):
    """TensorRT on NVIDIA GPUs: written and compared here, not timed."""

    name = "tensorrt"
    is_timed = False
    takes_trained = False
    """Its activations must be symmetric about 0; those of a trained network are not."""

    def export(self, network: Any, path: Path) -> None:
        super().export(network, path)
        _write_script(path, tuple(network.inputs[0].shape[1:]), "--fp16")

    def quantize(self, source: Path, path: Path, images: np.ndarray, kept_float: Mapping[str, np.ndarray]) -> None:
        """Write a QDQ file as TensorRT reads it: activations symmetric too, biases in float32."""
        super().quantize(source, path, images, kept_float)
        _write_script(path, images.shape[1:], "--int8 --fp16")

    @property
    def kernel_limit(self) -> int:
        return KERNEL_LIMIT

    def settings(self) -> dict[str, Any]:
        quantization = load_package("onnxruntime.quantization")
        options = {"ActivationSymmetric": True, "WeightSymmetric": True, "AddQDQPairToWeight": True}
        int8 = quantization.QuantType.QInt8
        return {"activation_type": int8, "extra_options": {**options, "QuantizeBias": False}}


def _write_script(path: Path, shape: tuple[int | None, ...], precision: str) -> None:
    """Write the script beside an ONNX file whose input is called `image`.

    Raises:
        BadInputError: the network takes images of any size.
    """
    if None in shape:
        raise BadInputError(
            f"TensorRT needs images of one size. Received: a model for {shape}. Build the model for one size."
        )
    height, width, channels = shape
    script = path.with_suffix(SCRIPT_SUFFIX)
    script.write_text(
        _SCRIPT.format(
            name=shlex.quote(path.name),
            stem=shlex.quote(path.stem),
            precision=precision,
            height=height,
            width=width,
            channels=channels,
        )
    )
    script.chmod(0o755)
