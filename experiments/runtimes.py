"""Run a Keras network where it will run: exported to ONNX Runtime or to LiteRT, or as a TensorFlow graph.

Every runner uses one thread of the CPU (TensorFlow's is set when TensorFlow is loaded) and agrees with Keras.
"""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pbd.errors import PbdError

TOLERANCE = 1e-3
"""An exported network may differ from Keras by this part of its largest output."""

Runner = Callable[[np.ndarray], np.ndarray]
"""One forward pass: images of shape `(batch, height, width, channels)` to scores of shape `(batch, classes)`."""


@dataclass(frozen=True)
class Runtime:
    """Somewhere to run a network."""

    make_runner: Callable[[Any, Path], Runner]
    """Exports a model that has been called once into a folder, and returns its runner."""
    packages: tuple[str, ...]
    """What it imports."""
    extra: str
    """The extra of pbd that brings these packages."""

    def missing_packages(self) -> list[str]:
        """Return the packages that are not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


def _onnx(model: Any, folder: Path) -> Runner:
    import onnxruntime

    path = str(folder / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _litert(model: Any, folder: Path) -> Runner:
    import tensorflow as tf

    path = folder / "model.tflite"
    model.export(str(path), format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(
        model_content=path.read_bytes(), num_threads=1
    )  # uses XNNPACK unless told otherwise
    inputs, outputs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    sized_for: tuple[int, ...] = ()

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal sized_for
        if images.shape != sized_for:
            interpreter.resize_tensor_input(inputs, images.shape)
            interpreter.allocate_tensors()
            sized_for = images.shape
        interpreter.set_tensor(inputs, images)
        interpreter.invoke()
        return interpreter.get_tensor(outputs)

    return run


def _tensorflow(model: Any, folder: Path) -> Runner:
    import tensorflow as tf

    traced = tf.function(lambda images: model(images, training=False))
    return lambda images: traced(tf.constant(images)).numpy()


RUNTIMES = {
    "onnx": Runtime(_onnx, ("onnx", "tf2onnx", "onnxruntime"), "export"),
    "litert": Runtime(_litert, ("tensorflow",), "cpu"),
    "tensorflow": Runtime(_tensorflow, ("tensorflow",), "cpu"),
}


def _fix_constants(model: Any) -> None:
    """Turn the tensors that a normalisation layer derives into arrays: tf2onnx would make further inputs of them."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = map(keras.ops.convert_to_numpy, (layer.mean, layer.variance))


def make_runner(name: str, model: Any, runtime: str) -> Runner:
    """Return a runner of a flat functional model.

    Args:
        name: what to call the model in words.
        model: a flat functional Keras model.
        runtime: a key of `RUNTIMES`, installed.

    Raises:
        PbdError: the export fails.
    """
    _fix_constants(model)
    try:
        model(np.zeros((1, *model.inputs[0].shape[1:]), model.inputs[0].dtype))  # what was never called has no export
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return RUNTIMES[runtime].make_runner(model, Path(folder))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise PbdError(f"{name} cannot be run in {runtime}: {reason}. Leave it out with --runtimes.") from error


def check_agreement(name: str, model: Any, runner: Runner, images: np.ndarray) -> float:
    """Return a runner's largest difference from Keras on these images, over the largest output.

    Raises:
        PbdError: the difference is more than `TOLERANCE`.
    """
    import keras

    expected = keras.ops.convert_to_numpy(model(images, training=False))
    difference = float(np.max(np.abs(runner(images) - expected)) / np.max(np.abs(expected)))
    if not difference <= TOLERANCE:
        raise PbdError(
            f"{name} must agree with Keras to {TOLERANCE:g} of its largest output. Received: {difference:.2g}. "
            "The speed of another network says nothing: leave this runtime out with --runtimes."
        )
    return difference
