"""Compute tensors of a network on a set of images, layer after layer, without starting from the images each time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.networks.keras_internals import call_counts, calls, producer
from pbd.system import watchdog

MOST_BYTES = 2**30
"""Most memory for the tensors from which a computation goes on, in bytes."""


class ProgressiveRun:
    """Computes tensors of a network, fastest in graph order; weights may change behind what has been computed.

    It remembers the tensors at one cut through the graph, from which all later ones can be computed. A cut that needs
    too much memory is left out, so that the computation goes on from the one before it, or from the images; so is one
    through a layer that is called several times, because Keras makes no model that starts there. What lies before the
    cut is computed from the images.

    Args:
        model: a flat functional model.
        batches: batches of images, which the model takes.
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, model: keras.Model, batches: Sequence[Any], most_bytes: int = MOST_BYTES) -> None:
        self._calls = list(calls(model))
        self._positions = {id(operation): position for position, (operation, _, _) in enumerate(self._calls)}
        self._counts = call_counts(model)
        self._most_bytes, self._images = most_bytes, sum(map(len, batches))
        self._start = _Cut(0, list(model.inputs), [[batch] for batch in batches])
        self._cut = self._start

    def values(self, tensors: Sequence[Any], operation: Any) -> Iterator[list[np.ndarray]]:
        """Yield the values of tensors on each batch, and remember the cut before an operation.

        Args:
            tensors: computed before the operation, or by operations whose weights do not change.
            operation: whose weights, and those of the operations behind it, may change when all values are read.
        """
        position = self._positions[id(operation)]
        start = self._cut if self._cut.position <= position else self._start
        cut = self._tensors_at(position)
        before = set(map(id, start.tensors))
        missing = [tensor for tensor in _distinct([*tensors, *cut]) if id(tensor) not in before]
        function = keras.Model(start.tensors, missing) if missing else None
        remembered = []
        for inputs in start.values:
            watchdog.touch()
            outputs = keras.tree.flatten(function(inputs, training=False)) if function else []
            computed = [keras.ops.convert_to_numpy(output) for output in outputs]
            by_tensor = dict(zip(map(id, [*start.tensors, *missing]), [*inputs, *computed], strict=True))
            remembered.append([by_tensor[id(tensor)] for tensor in cut])
            yield [np.asarray(by_tensor[id(tensor)]) for tensor in tensors]
        self._cut = _Cut(position, cut, remembered) if cut else start

    def _tensors_at(self, position: int) -> list[Any]:
        """Return the tensors that calls from `position` on read and earlier ones compute; empty without them."""
        later = {id(tensor) for _, _, outputs in self._calls[position:] for tensor in outputs}
        read = _distinct([tensor for _, inputs, _ in self._calls[position:] for tensor in inputs])
        cut = [tensor for tensor in read if id(tensor) not in later]
        size = sum(4 * self._images * int(np.prod(tensor.shape[1:])) for tensor in cut)
        is_shared = any(self._counts[id(producer(tensor)[0])] > 1 for tensor in cut)
        return [] if is_shared or size > self._most_bytes else cut


@dataclass(frozen=True)
class _Cut:
    """Tensors from which all later ones can be computed, and their values."""

    position: int
    """The first call behind it."""
    tensors: list[Any]
    values: list[list[Any]]
    """The values of each batch, in the order of the tensors."""


def _distinct(tensors: Sequence[Any]) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())
