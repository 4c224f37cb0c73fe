"""The protocol of a runtime: a library that runs networks from files of its own format."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pbd.system import backend, imports

Runner = Callable[[np.ndarray], np.ndarray]
"""One forward pass: images, (batch, height, width, channels) float32, to class scores, (batch, classes) float32."""

KERNEL_LIMIT = 127
"""The largest integer of a kernel of 8 bits; the smallest is its negative."""
SMALLEST_SCALE = 1e-8
"""The scale of tensors that are always 0."""
_TELEMETRY = "openvino_telemetry"
"""OpenVINO and NNCF do without. It forks the process, with TensorFlow's memory, for every operation of a network."""
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY", "1"
"""ONNX Runtime reads it as it is loaded, and otherwise starts a thread and keeps files in the user's caches."""


@runtime_checkable
class Runtime(Protocol):
    """A library that runs networks from files of its own format."""

    name: str
    suffix: str
    """The suffix of its files; empty if it writes folders."""
    extra: str
    """The extra of pbd that installs what it needs."""
    packages: tuple[str, ...]
    """The modules that exporting and running import; if TensorFlow is one of them, it must be Keras' backend."""
    packages_to_run: tuple[str, ...]
    """The packages among them that running imports."""
    takes_threads: bool = True
    """Whether `load` can limit the CPU threads; if not, passes use those of the process, or wait for a GPU."""
    is_timed: bool = True
    """Whether latency can be measured; if not, files are run by another library to compare them with Keras."""

    def export(self, network: Any, path: Path) -> None:
        """Write a network in this format, in float32, for any batch size.

        Args:
            network: as `portable.portable` returns it.
            path: the path of the file; its folder exists.
        """

    def load(self, path: Path, threads: int) -> Runner:
        """Return the forward pass of a file.

        Args:
            path: the path of a file that `export` or `quantize` wrote.
            threads: CPU threads. Keras and TensorFlow use those of the process.
        """


@runtime_checkable
class QuantizingRuntime(Runtime, Protocol):
    """A runtime with 8-bit integer kernels."""

    quantizing_packages: tuple[str, ...]
    """The further modules that quantising imports."""
    rounds_outputs: bool = False
    """Whether the outputs of a network are rounded to 8 bits too."""
    takes_trained: bool = True
    """Whether there is a form for networks that were trained for 8-bit integers (see `export_fake_quantized`)."""

    def for_int8(self, network: Any) -> Any:
        """Return a network that computes the same, in the form from which `quantize` makes the fastest file.

        Args:
            network: as `quantizable.quantizable` returns it.
        """
        return network

    def quantize(self, source: Path, path: Path, images: np.ndarray, kept_float: Mapping[str, np.ndarray]) -> None:
        """Write a network with 8-bit weights (per channel) and activations.

        Args:
            source: a file that `export` wrote.
            path: the path of the new file.
            images: the images that the ranges of the activations are taken from, as the network takes them.
            kept_float: the kernels of the layers that stay in float32, by layer.
        """

    def export_fake_quantized(self, network: Any, path: Path, kernels: Mapping[str, np.ndarray]) -> None:
        """Write a trained network with fake quantisation as 8-bit integers.

        Args:
            network: as `integer_form.exportable` returns it: activations are rounded by TensorFlow's
                `fake_quant_with_min_max_args`, which becomes the quantisation of the format.
            path: the path of the new file.
            kernels: the kernels to store in 8 bits, by layer; they are rounded.
        """

    @property
    def kernel_limit(self) -> int:
        """The largest integer of kernels."""
        return KERNEL_LIMIT

    @property
    def trained_kernel_limit(self) -> int:
        """The largest integer of kernels that `export_fake_quantized` writes."""
        return self.kernel_limit


def missing(packages: tuple[str, ...]) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in packages if not backend.is_installed(name)]


def load_package(name: str) -> Any:
    """Import a module that sends no telemetry, unless the process has loaded it before."""
    with imports.hidden(_TELEMETRY), imports.variable(*_NO_TELEMETRY):
        return importlib.import_module(name)


def owners(constants: Mapping[str, np.ndarray], kernels: Mapping[str, np.ndarray]) -> set[str]:
    """Return the names of the constants of a file that hold one of these kernels.

    Converters rename operations and reorder the axes of kernels, but keep their values.

    Args:
        constants: the constants of the file, by name.
        kernels: the kernels by layer.
    """
    contents = {_values(kernel) for kernel in kernels.values()}
    return {name for name, constant in constants.items() if _values(constant) in contents}


def kernel_scales(kernel: np.ndarray, axes: tuple[int, ...], limit: int = KERNEL_LIMIT) -> np.ndarray:
    """Return the scale of each output channel of a kernel, with axes of length 1 in the place of all others.

    Args:
        kernel: rounded or not: the scale is the same.
        axes: the axes of the output channels.
        limit: the largest integer.
    """
    others = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
    return np.maximum(np.abs(kernel).max(axis=others, keepdims=True) / limit, SMALLEST_SCALE).astype(np.float32)


def _values(array: np.ndarray) -> bytes:
    """Return what arrays with the same values in another order have in common."""
    return np.sort(np.asarray(array, np.float32) + 0.0, axis=None).tobytes()  # + 0.0 makes 0 of -0
