"""The replacement design: the one object that describes a kind of block to the rest of pbd."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np

from pbd.records import CONVOLUTION, Layer

if TYPE_CHECKING:
    from pbd.blocks.initialisation import Statistics


@dataclass(frozen=True)
class LayerKernel:
    """The trained weights of the layer that a block replaces, as float64."""

    dense: np.ndarray
    """(input channels, kernel positions, output channels); zero between groups."""
    bias: np.ndarray
    """(output channels,); zero if the layer has no bias."""


class BlockDesign(Protocol):
    """A replacement design. Subclass it, give it a name, implement `build`, and register an instance.

    A design is sent to worker processes by pickling, so it must hold plain settings only. The methods with a body are
    defaults that a design may override.

    Example:
        >>> from pbd import blocks
        >>> class Pointwise(blocks.BlockDesign):
        ...     name = "pointwise"
        ...     per_image = True
        ...
        ...     def build(self, x, layer, seed):
        ...         x = keras.layers.AveragePooling2D(layer.strides, padding="same", name=f"{layer.name}_pool")(x)
        ...         return keras.layers.Conv2D(layer.output_shape[-1], 1, name=f"{layer.name}_pointwise")(x)
        >>> blocks.register(Pointwise())
    """

    name: str
    """The name for `--block`; part of the key of its results."""
    replaces: str = CONVOLUTION
    """The kind of layers that it replaces (see `pbd.records.Layer`)."""
    per_image: bool = False
    """Whether it has no batch statistics, so that workers may split a batch."""
    needs_inputs: bool = False
    """Whether its closed-form initialisation uses the moments of the layer's input patches."""
    needs_pairs: bool = False
    """Whether it also uses the covariance of input patches and outputs, from which a kernel can be regressed."""
    needs_targets: bool = False
    """Whether its closed-form initialisation uses the mean and deviation of the layer's output."""

    def applies_to(self, layer: Layer) -> str | None:
        """Return `None` if the design can replace this layer, or else the reason why not."""
        return None

    def unprofitable(self, layer: Layer) -> str | None:
        """Return why the block would not be faster than this layer although it computes less, or None.

        The user can override it with `--include-unprofitable`.
        """
        return None

    def channels_read(self, layer: Layer) -> int:
        """Return how many of the layer's input channels the block reads; by default, all."""
        return layer.input_shape[-1]

    def build(self, x: Any, layer: Layer, seed: int) -> Any:
        """Return the block's output for the input tensor `x`.

        Names of the Keras layers must begin with the name of the replaced layer, and seeds must derive from `seed` and
        those names (`pbd.blocks.derive_seed`). The output has the shape `layer.output_shape` and includes the
        activation of the replaced layer.

        Args:
            x: Keras tensor of shape `(batch, *layer.input_shape)`.
            layer: the convolution to replace.
            seed: the run's seed.
        """
        ...

    def initialise(
        self, block: keras.Model, layer: Layer, kernel: LayerKernel, statistics: "Statistics | None"
    ) -> None:
        """Set the block's weights in closed form, in place; by default they stay random.

        Args:
            block: a model from `layer.input_shape` to `layer.output_shape` (see `build_block`).
            layer: the convolution to replace.
            kernel: the layer's trained weights; empty for a residual block.
            statistics: the statistics of the layer's inputs and outputs: those that the design needs and `block_init`
                allows; None if there are none.
        """

    def for_inference(self, model: keras.Model) -> keras.Model:
        """Return `model` with this design's blocks written as runtimes compute them fastest; by default unchanged.

        Args:
            model: a flat functional model in which blocks of any design may occur. The result computes the same
                function and may share layers with `model`; the caller copies it.
        """
        return model

    def for_int8(self, model: keras.Model) -> keras.Model:
        """Return `model` with this design's blocks written as runtimes compute them fastest in 8-bit integers.

        By default, the form is that of `for_inference`.

        Args:
            model: see `for_inference`.
        """
        return self.for_inference(model)
