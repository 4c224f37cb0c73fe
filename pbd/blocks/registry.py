"""Block designs by name."""

import keras

from pbd.blocks.design import BlockDesign
from pbd.errors import UsageError, unknown_name
from pbd.records import Layer
from pbd.system import initial_values

_DESIGNS: dict[str, BlockDesign] = {}


def register(design: BlockDesign) -> BlockDesign:
    """Make a design available by its name; a design registered before under that name is replaced."""
    _DESIGNS[design.name] = design
    return design


def get(name: str) -> BlockDesign:
    """Return the design of this name.

    Raises:
        UsageError: no design has this name; the message names the nearest one.
    """
    if name not in _DESIGNS:
        raise UsageError(unknown_name("block", name, _DESIGNS))
    return _DESIGNS[name]


def designs() -> tuple[BlockDesign, ...]:
    """Return all registered designs."""
    return tuple(_DESIGNS.values())


@initial_values.on_host()
def build_block(design: BlockDesign, layer: Layer, seed: int) -> keras.Model:
    """Return a block as a model of its own, from `layer.input_shape` to `layer.output_shape`."""
    inputs = keras.Input(layer.input_shape, dtype=keras.DTypePolicy(layer.dtype).compute_dtype)
    return keras.Model(inputs, design.build(inputs, layer, seed), name=f"{layer.name}_pbd_block")
