"""A selection of channels: a layer while blocks are trained, an operation of plain Keras in the student."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from pbd.blocks import operation

SELECTED = "_pbd_select"
"""Suffix of the selection before a block."""


class SelectChannels(keras.layers.Layer):
    """Some channels of a feature map, `(batch, rows, columns, channels)`, in any order; by default the first.

    Their indices are a weight that is not trained. They are thus shared and stored like all weights of a block, and can
    be set once the statistics of its inputs are known.

    Args:
        count: the number of selected channels.
        name: the name of the layer.
        dtype: the dtype policy of the layer.
    """

    def __init__(self, count: int, name: str, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.count = count

    def build(self, input_shape: Any) -> None:
        """Create the indices."""
        # Of the default integer type: TensorFlow has no variables of 32-bit integers on GPUs.
        self.indices = self.add_weight(
            shape=(self.count,), initializer=_counting, dtype="int", trainable=False, name="indices"
        )

    def call(self, x: Any) -> Any:
        """Return the selected channels of a feature map."""
        return keras.ops.take(x, self.indices, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the output."""
        return (*input_shape[:-1], self.count)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the layer."""
        return {"count": self.count, "name": self.name, "dtype": super().get_config()["dtype"]}


def _counting(shape: Any, dtype: Any = None) -> Any:
    return keras.ops.arange(shape[0], dtype=dtype)


def constant_selections(model: keras.Model) -> Mapping[str, Callable[[Any], Any]]:
    """Return, by name of each `SelectChannels` in a model, what replaces it: a `keras.ops.take` of its present indices.

    A model with these replacements is saved and loaded without custom objects (see `pbd.networks.graph.swap`), and
    `pbd.networks.channels` can remove the channels that are not selected.

    Args:
        model: functional; a block or a student.
    """
    return {layer.name: _constant(layer) for layer in model.layers if isinstance(layer, SelectChannels)}


def _constant(layer: SelectChannels) -> Callable[[Any], Any]:
    indices = keras.ops.convert_to_numpy(layer.indices).tolist()

    def take(x: Any) -> Any:
        return operation.named(lambda tensor: keras.ops.take(tensor, indices, axis=-1), x, layer.name, indices)

    return take
