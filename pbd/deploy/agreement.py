"""Agreement of a file in a runtime with the Keras network that it was written from."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pbd.deploy.runtimes.base import Runner
from pbd.deploy.targets import Target
from pbd.networks import compiled, heads
from pbd.system import devices

TOLERANCE = 1e-4
"""Largest difference of the logits of float32 files, as a fraction of the largest logit."""
_BATCH = 100
_SINGLE = 4
"""Images that are run one at a time."""
_RESOLVED = 0.02
"""Logits from float32 probabilities are off by about 1e-6, which is within the tolerance of this one."""
_MOST_UNSTEADY = 0.1
"""Largest difference between an image alone and in a batch: roundings of 8-bit integers may fall differently."""


@dataclass(frozen=True)
class Agreement:
    """How the outputs of a file differ from those of Keras."""

    difference: float
    """Largest difference of the logits, as a fraction of the largest logit; of the probabilities, where the runtime
    rounds them to 8 bits. Infinite if one is not finite, or if the file computes something else for single images than
    for the same images in a batch."""
    same_class: float
    """Fraction of the images for which both predict the same class."""
    images: int


def compare(target: Target, path: Path, network: keras.Model, images: np.ndarray) -> Agreement:
    """Compare a file with a network, which Keras runs operation by operation.

    The file is run on batches with all cores and on some single images with one thread: runtimes choose other kernels.

    Args:
        target: the target of the file.
        path: the path of the file.
        network: flat, in float32.
        images: (n, height, width, channels) float32, as the network takes them.
    """
    head = heads.head_of(network)
    single = target.load(path, threads=1)
    singles = np.concatenate([single(image) for image in np.split(images[:_SINGLE], len(images[:_SINGLE]))])
    outputs = run_in_batches(target.load(path, devices.available_cores()), images)
    expected = expected_logits(network, images)
    if target.int8 and target.quantizer.rounds_outputs:
        scores, received, alone = heads.probabilities(expected, head), outputs, singles
    else:
        scores, received, alone = _comparable(expected, head), heads.logits(outputs, head), heads.logits(singles, head)
    smallest = 0.0 if head is heads.Head.NONE else _RESOLVED
    difference = _difference(scores, received, smallest)
    if _difference(received[: len(singles)], alone, smallest) > _MOST_UNSTEADY:
        difference = float("inf")
    same = heads.classes(expected, heads.Head.NONE) == heads.classes(outputs, head)
    return Agreement(difference, float(np.mean(same)), len(images))


def expected_logits(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the logits that Keras computes, where it can without fused kernels; (n, outputs) float64."""
    logits = heads.remove(network)
    parts = np.split(images, range(_BATCH, len(images), _BATCH))
    outputs = [compiled.outputs(logits, part) for part in parts]
    return np.concatenate(outputs).astype(np.float64)


def run_in_batches(runner: Runner, images: np.ndarray) -> np.ndarray:
    """Return the outputs for all images, (n, outputs)."""
    return np.concatenate([runner(part) for part in np.split(images, range(_BATCH, len(images), _BATCH))])


def _comparable(logits: np.ndarray, head: heads.Head) -> np.ndarray:
    """Return logits as `heads.logits` recovers them from probabilities."""
    if head is heads.Head.SOFTMAX:
        return np.maximum(logits - logits.max(axis=-1, keepdims=True), -heads.LOWEST)
    return np.clip(logits, -heads.LARGEST, heads.LARGEST) if head is heads.Head.SIGMOID else logits


def _difference(expected: np.ndarray, received: np.ndarray, smallest: float) -> float:
    """Return the largest difference as a fraction of the largest expected value, or of `smallest` if that is larger."""
    if not np.isfinite(received).all():
        return float("inf")
    largest = max(float(np.abs(expected).max()), smallest, float(np.finfo(np.float32).tiny))
    return float(np.abs(received - expected).max()) / largest
