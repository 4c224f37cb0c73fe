"""Replacement designs, one file per family; knows no graph."""

from pbd.blocks import decoupled, separable
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.registry import build_block, designs, get, register
from pbd.blocks.seeds import derive_seed
from pbd.blocks.weights import get_weights, set_weights

__all__ = [
    "BlockDesign",
    "LayerKernel",
    "build_block",
    "derive_seed",
    "designs",
    "get",
    "get_weights",
    "register",
    "set_weights",
]

for _design in (*decoupled.DESIGNS, *separable.DESIGNS):
    register(_design)
