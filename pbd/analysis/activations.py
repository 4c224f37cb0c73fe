"""The layers that two networks are compared at, and their activations on images of a data set."""

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from pbd.data import Dataset, IndexedSplit
from pbd.errors import UsageError, unknown_name
from pbd.learning.metrics import pad_batches
from pbd.networks import folding, graph, heads, precision
from pbd.networks.keras_internals import call_counts
from pbd.networks.residuals import find_residuals

LOGITS = "logits"
"""The name under which the outputs of a network are compared, before a softmax or sigmoid."""
_BLOCK = "_pbd_"
"""In the names of a block's layers, what follows the name of the layer that it replaces."""
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_FLOAT_BYTES = 4


@dataclass(frozen=True, eq=False)
class Point:
    """An output of a network that is compared."""

    operation: str
    """The name of the operation that computes it."""
    tensor: Any

    @property
    def bytes_per_image(self) -> int:
        """Memory of its activations in float32, per image."""
        return _FLOAT_BYTES * int(np.prod(self.tensor.shape[1:]))

    @property
    def channels_bytes(self) -> int:
        """The same once they are averaged over positions, in float64."""
        return 2 * _FLOAT_BYTES * int(self.tensor.shape[-1])


def inference_copy(model: keras.Model, shape: tuple[int, int, int]) -> keras.Model:
    """Return a flat copy in float32 whose batch normalisations are folded into the convolutions before them.

    The activations of a convolution are then behind its normalisation, whether or not the file of a student is folded.
    """
    return folding.fold_all(precision.in_float32(graph.flatten(model, shape)))


def points(network: keras.Model, patterns: Sequence[str] = ()) -> dict[str, Point]:
    """Return the outputs that are compared by name of the layer, in graph order, the logits last.

    A block has the name of the layer that it replaced, and its output is that of its last layer.

    Args:
        network: flat and functional.
        patterns: globs over the names; by default convolutions with a kernel other than 1x1, ends of residual blocks,
            and blocks.
    """
    counts, residuals = call_counts(network), find_residuals(network)
    chosen: dict[str, Point] = {}
    for operation in network.operations:
        name, is_block, _ = operation.name.partition(_BLOCK)
        if counts.get(id(operation), 0) != 1 or isinstance(operation.output, list | tuple | dict):
            continue
        if patterns:
            included = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        else:
            included = bool(is_block) or operation.name in residuals or _is_convolution(operation)
        if included:
            chosen.pop(name, None)  # so that the order is that of the last layers of blocks
            chosen[name] = Point(operation.name, operation.output)
    chosen.pop(LOGITS, None)
    return {**chosen, LOGITS: Point(LOGITS, heads.remove(network).outputs[0])}


def check_patterns(network: keras.Model, patterns: Iterable[str]) -> None:
    """Check that each pattern matches a layer.

    Raises:
        UsageError: one does not.
    """
    names = [operation.name.partition(_BLOCK)[0] for operation in network.operations]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(unknown_name("layer or pattern", pattern, names))


def _is_convolution(operation: Any) -> bool:
    return isinstance(operation, _CONVOLUTIONS) and tuple(operation.kernel_size) != (1, 1)


def sample(dataset: Dataset, split: str, most: int | None) -> Dataset:
    """Return the data with at most this many images in a split, the first ones: they are of all classes."""
    images = getattr(dataset, split)
    if most is None or most >= len(images):
        return dataset
    if isinstance(images, IndexedSplit):
        images = replace(images, rows=images.rows[:most], labels=images.labels[:most])
    else:
        images = replace(images, size=most)
    return replace(dataset, **{split: images})


def outputs(
    network: keras.Model, tensors: Mapping[str, Any], dataset: Dataset, split: str, averaged: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return outputs of a network for all images of a split, in one pass, and the labels.

    Args:
        network: flat and functional.
        tensors: Keras tensors of the network, by name.
        dataset: the images.
        split: train, validation or test.
        averaged: average feature maps over their positions, batch by batch.

    Returns:
        By name, (images, channels) if averaged, else (images, height, width, channels); labels, (images,).
    """
    probe = keras.Model(network.inputs[0], dict(tensors))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    labels = []
    for pixels, classes, count in pad_batches(_batches(dataset, split)):
        for name, values in probe.predict_on_batch(pixels).items():
            collected[name].append(_without_positions(values[:count]) if averaged else np.asarray(values[:count]))
        labels.append(np.asarray(classes))
    return {name: np.concatenate(parts) for name, parts in collected.items()}, np.concatenate(labels)


def _batches(dataset: Dataset, split: str) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of a split; those of a stream that is longer than the sample end with it."""
    yield from dataset.batches(split, limit=len(getattr(dataset, split)))


def _without_positions(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array.mean(axis=tuple(range(1, array.ndim - 1)), dtype=np.float64) if array.ndim > 2 else array


def in_parts(sizes: Mapping[str, int], most: int) -> Iterator[Collection[str]]:
    """Yield names in their order, in parts whose sizes add up to at most `most`, or of one name."""
    part: list[str] = []
    for name, size in sizes.items():
        if part and sum(sizes[other] for other in part) + size > most:
            yield part
            part = []
        part.append(name)
    if part:
        yield part
