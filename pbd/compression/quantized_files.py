"""The quality of files in 8-bit integers, as their runtime computes them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from pbd.compression.context import Context
from pbd.deploy import images, targets
from pbd.learning.metrics import class_scores, pad_batches, predict
from pbd.networks import heads
from pbd.system import devices


def score(path: Path, target: str, network: keras.Model, context: Context, split: str = "validation") -> float:
    """Return the accuracy of a file in its runtime, or without labels the agreement with the first network.

    Args:
        path: the file.
        target: the name of its target.
        network: the network of the file, in Keras.
        context: the images, and the first network.
        split: the images.

    Raises:
        UsageError: the target is unknown.
        EnvironmentMismatchError: the target is not installed.
        BadInputError: the file cannot be run.
    """
    dataset, head = context.dataset, heads.head_of(network)
    run = targets.get(target).load(path, devices.available_cores())
    accuracy = images.accuracy(run, dataset, split, head)
    if accuracy is not None:
        return accuracy
    agreed = [
        (heads.classes(run(np.asarray(pixels, np.float32)), head) == _first_classes(pixels, context))[:count]
        for pixels, _, count in pad_batches(dataset.batches(split))
    ]
    return float(np.concatenate(agreed).mean())


def _first_classes(pixels: Any, context: Context) -> np.ndarray:
    """Return the classes that the first network predicts, (batch,)."""
    return np.argmax(class_scores(predict(context.teacher, pixels)), axis=-1)
