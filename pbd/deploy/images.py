"""The images that exported files are compared on, calibrated with and scored on."""

from dataclasses import replace

import keras
import numpy as np

from pbd import data as datasets
from pbd.data import Data, Dataset
from pbd.deploy.runtimes.base import Runner
from pbd.errors import BadInputError
from pbd.networks import graph, heads


def load(data: Data, network: keras.Model, seed: int) -> Dataset:
    """Return the data in the size that a network takes.

    Args:
        data: the images.
        network: takes them.
        seed: missing splits are cut from the training images with it.

    Raises:
        UsageError: they are no `Data`.
        BadInputError: they do not fit the network.
    """
    datasets.check_data(data)
    config = data.config
    if config.preprocess == "auto":
        config = replace(config, preprocess="none")
    return datasets.load(config, seed, graph.image_shape(network), raw=data.raw_splits(config.labels))


def first(dataset: Dataset, split: str, count: int) -> np.ndarray:
    """Return the first images of a split, without augmentation, preprocessed: (n, height, width, channels) float32."""
    return np.concatenate([np.asarray(pixels, np.float32) for pixels, _ in dataset.batches(split, limit=count)])


def random(network: keras.Model, count: int) -> np.ndarray:
    """Return images of random bytes, (count, height, width, channels) float32.

    Raises:
        BadInputError: the network takes images of any size.
    """
    shape = tuple(network.inputs[0].shape[1:])
    if None in shape:
        raise BadInputError(
            f"the size of the images must be known. Received: a model for {shape}. Give images or data to check with, "
            "or a model that is built for one size."
        )
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.float32)


def accuracy(run: Runner, dataset: Dataset, split: str, head: heads.Head) -> float | None:
    """Return the fraction of a split that a network classifies correctly; `None` without labels.

    Args:
        run: the forward pass of the network.
        dataset: the images.
        split: validation or test.
        head: the head of the network.
    """
    if not dataset.labelled:
        return None
    correct = [
        heads.classes(run(np.asarray(pixels, np.float32)), head) == np.asarray(labels)
        for pixels, labels in dataset.batches(split)
    ]
    return float(np.concatenate(correct).mean())
