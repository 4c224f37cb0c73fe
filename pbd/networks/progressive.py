"""Compute tensors of a network on a set of images, layer after layer, without starting from the images each time."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from pbd.networks.keras_internals import calls
from pbd.system import watchdog

MOST_BYTES = 2**30
"""Most memory for the tensors from which a computation goes on, in bytes."""


class ProgressiveRun:
    """Computes tensors of a network in graph order; weights may change behind what has been computed.

    It remembers the tensors at one cut through the graph, from which all later ones can be computed. A cut that needs
    too much memory is left out, so that the computation goes on from the one before it, or from the images.

    Args:
        model: a flat functional model.
        batches: of images, which the model takes.
        most_bytes: see `MOST_BYTES`.
    """

    def __init__(self, model: keras.Model, batches: Sequence[Any], most_bytes: int = MOST_BYTES) -> None:
        self._calls = list(calls(model))
        self._positions = {id(operation): position for position, (operation, _, _) in enumerate(self._calls)}
        self._most_bytes, self._images = most_bytes, sum(map(len, batches))
        self._tensors: list[Any] = list(model.inputs)
        self._values: list[list[Any]] = [[batch] for batch in batches]

    def values(self, tensors: Sequence[Any], operation: Any) -> Iterator[list[np.ndarray]]:
        """Yield the values of tensors on each batch, and remember the cut before an operation.

        Args:
            tensors: computed before the operation, or by operations whose weights do not change.
            operation: whose weights, and those of the operations behind it, may change when all values are read.
        """
        cut = self._cut(self._positions[id(operation)])
        sizes = [4 * self._images * int(np.prod(tensor.shape[1:])) for tensor in cut]
        cut = cut if sum(sizes) <= self._most_bytes else []
        before = set(map(id, self._tensors))
        missing = [tensor for tensor in _distinct([*tensors, *cut]) if id(tensor) not in before]
        function = keras.Model(self._tensors, missing) if missing else None
        remembered = []
        for inputs in self._values:
            watchdog.touch()
            outputs = keras.tree.flatten(function(inputs, training=False)) if function else []
            computed = [keras.ops.convert_to_numpy(output) for output in outputs]
            by_tensor = dict(zip(map(id, [*self._tensors, *missing]), [*inputs, *computed], strict=True))
            remembered.append([by_tensor[id(tensor)] for tensor in cut])
            yield [np.asarray(by_tensor[id(tensor)]) for tensor in tensors]
        if cut:
            self._tensors, self._values = cut, remembered

    def _cut(self, position: int) -> list[Any]:
        """Return the tensors that calls from `position` on read and earlier ones compute."""
        later = {id(tensor) for _, _, outputs in self._calls[position:] for tensor in outputs}
        read = _distinct([tensor for _, inputs, _ in self._calls[position:] for tensor in inputs])
        return [tensor for tensor in read if id(tensor) not in later]


def _distinct(tensors: Sequence[Any]) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())
