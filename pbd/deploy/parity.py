"""Parity: the model in a file computes what a network in memory computes."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from pbd.networks import compiled, files, heads
from pbd.system import devices

NUM_IMAGES = 16
"""Images on which a file is compared."""
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of class scores, as a fraction of the largest score, by compute dtype."""
ACCELERATOR_TOLERANCE = 1e-2
"""Tolerance for float32 on accelerators, which may compute convolutions in TF32."""


def mismatch(path: Path, model: keras.Model, images: Any) -> str | None:
    """Return why the model in a file does not compute what `model` computes, or `None` if it does.

    The file is loaded and run in graph mode, as it will be served; `model` is run operation by operation, without fused
    kernels, except on JAX (see `compiled.outputs`). If all differences lie within the tolerance, the predicted classes
    are the same except near ties.

    Args:
        path: the path of a file that pbd wrote.
        model: flat and functional, with the outputs `(batch, classes)`.
        images: `(batch, height, width, channels)`.
    """
    expected = compiled.outputs(_with_logits(model), images)
    try:
        outputs = _with_logits(files.load_own(path)).predict_on_batch(images)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"it cannot be run: {reason[:300]}"
    largest, limit = max(map(difference, expected, outputs)), tolerance(model)
    return None if largest <= limit else f"its class scores are {largest:.2%} off (at most {limit:.2%} is rounding)"


def difference(expected: np.ndarray, outputs: np.ndarray) -> float:
    """Return the largest difference as a fraction of the largest expected value; infinite if one is not finite."""
    expected, outputs = (np.asarray(values, np.float64) for values in (expected, outputs))
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(outputs)):
        return float("inf")
    scale = max(np.abs(expected[finite]).max(initial=0.0), np.finfo(np.float32).tiny)
    return float(np.abs(outputs[finite] - expected[finite]).max(initial=0.0) / scale)


def tolerance(model: keras.Model) -> float:
    """Return the difference of class scores that rounding explains, for the least precise dtype of the model."""
    float32 = ACCELERATOR_TOLERANCE if devices.has_accelerator() else TOLERANCE["float32"]
    return max(float32, *(TOLERANCE.get(layer.compute_dtype, float32) for layer in model.layers))


def _with_logits(model: keras.Model) -> keras.Model:
    """Return a model of the logits and the outputs: saturated probabilities would hide differences."""
    return keras.Model(model.inputs[0], [heads.remove(model).outputs[0], model.outputs[0]])
