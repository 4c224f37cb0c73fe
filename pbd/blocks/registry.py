"""Block designs by name."""

import re
from collections.abc import Callable

import keras

from pbd.blocks.design import BlockDesign
from pbd.errors import UsageError, unknown_name
from pbd.records import Layer
from pbd.system import initial_values, keras_state

_DESIGNS: dict[str, BlockDesign] = {}
_FAMILIES: dict[str, tuple[Callable[[int], BlockDesign], range]] = {}
"""Designs that differ by a number, and the numbers, by the prefix of their names."""


def register(design: BlockDesign) -> BlockDesign:
    """Make a design available by its name; a design registered before under that name is replaced.

    Raises:
        ValueError: the name contains @, which separates layer and design in the names of blocks.
    """
    _check_name(design.name)
    _DESIGNS[design.name] = design
    return design


def register_family(prefix: str, design: Callable[[int], BlockDesign], numbers: range) -> None:
    """Make the designs of a family available by names of a prefix and a number, without leading zeros.

    Register at least one design of the family, too: `designs` does not list designs that a family makes, so their
    `for_inference` and `for_int8` must be those of the registered one.

    Args:
        prefix: the prefix of the names.
        design: returns the design of a number; its name must be the prefix and the number.
        numbers: the numbers that a name may have.

    Raises:
        ValueError: the prefix contains @ (see `register`).

    Example:
        >>> register_family("spatial_svd_r", SpatialSvd, range(5, 96))
        >>> get("spatial_svd_r40")
        SpatialSvd(percent=40, name='spatial_svd_r40')
    """
    _check_name(prefix)
    _FAMILIES[prefix] = design, numbers


def _check_name(name: str) -> None:
    if "@" in name:
        raise ValueError(f"a design's name must not contain @. Received: {name!r}. Give it another name.")


def get(name: str) -> BlockDesign:
    """Return the design of this name.

    Raises:
        UsageError: no design has this name; the message names the nearest one.
    """
    if name in _DESIGNS:
        return _DESIGNS[name]
    for prefix, (design, numbers) in _FAMILIES.items():
        # Results are keyed by name, so each design must have one name only: r5, not r05.
        if name.startswith(prefix) and re.fullmatch("[1-9][0-9]{0,3}", name.removeprefix(prefix)):
            number = int(name.removeprefix(prefix))
            if number in numbers:
                return design(number)
            nearest = min(numbers, key=lambda allowed: abs(allowed - number))
            raise UsageError(unknown_name("block", name, [f"{prefix}{nearest}"]))
    raise UsageError(unknown_name("block", name, _DESIGNS))


def designs() -> tuple[BlockDesign, ...]:
    """Return all registered designs, of a family those that were registered themselves."""
    return tuple(_DESIGNS.values())


@initial_values.on_host()
def build_block(design: BlockDesign, layer: Layer, seed: int) -> keras.Model:
    """Return a block as a model of its own, from `layer.input_shape` to `layer.output_shape`."""
    inputs = keras.Input(layer.input_shape, dtype=keras.DTypePolicy(layer.dtype).compute_dtype)
    return keras.Model(inputs, design.build(inputs, layer, seed), name=f"{layer.name}_pbd_block")


def outline(design: BlockDesign, layer: Layer) -> keras.Model:
    """Return the block that `build_block` returns, but without values of its weights: for shapes and counts, sooner."""
    with keras_state.without_values():
        return build_block(design, layer, seed=0)
