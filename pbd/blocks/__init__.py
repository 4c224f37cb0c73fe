"""Replacement designs, one file per family; knows no graph."""

from pbd.blocks import decoupled, grouped, narrow, residual, separable, spatial_svd, tucker
from pbd.blocks.design import BlockDesign, LayerKernel
from pbd.blocks.percentage import PERCENTAGES
from pbd.blocks.registry import build_block, designs, get, outline, register, register_family
from pbd.blocks.seeds import derive_seed
from pbd.blocks.selection import constant_selections
from pbd.blocks.weights import get_weights, set_weights

__all__ = [
    "BlockDesign",
    "LayerKernel",
    "build_block",
    "constant_selections",
    "derive_seed",
    "designs",
    "get",
    "get_weights",
    "outline",
    "register",
    "register_family",
    "set_weights",
]

for _family in (decoupled, separable, spatial_svd, tucker, narrow, grouped, residual):
    for _design in _family.DESIGNS:
        register(_design)
for _percentage_design in (spatial_svd.SpatialSvd, tucker.Tucker2, narrow.Narrow):
    register_family(_percentage_design.prefix, _percentage_design, PERCENTAGES)
register_family(grouped.PREFIX, grouped.Grouped, grouped.GROUP_COUNTS)
