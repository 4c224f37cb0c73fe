"""The quality of files in 8-bit integers, as their runtime computes them."""

from pathlib import Path

import keras
import numpy as np

from pbd.compression.context import Context
from pbd.deploy import targets
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
    correct, images = 0, 0
    for batch, labels, count in pad_batches(dataset.batches(split)):
        pixels = np.asarray(batch, np.float32)
        expected = labels if dataset.labelled else np.argmax(class_scores(predict(context.teacher, pixels)), axis=-1)
        correct += int(np.sum(heads.classes(run(pixels), head)[:count] == np.asarray(expected)[:count]))
        images += count
    return correct / images
