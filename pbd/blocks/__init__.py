"""Replacement designs, one file per family; knows no graph."""

from pbd.blocks.decoupled import DECOUPLED_RANKS, FILTERED, POINTWISE, most_ranks, set_factors
from pbd.blocks.registry import BLOCKS, build_block
from pbd.blocks.seeds import derive_seed
from pbd.blocks.separable import set_separable
from pbd.blocks.weights import get_weights, set_weights

__all__ = [
    "BLOCKS",
    "DECOUPLED_RANKS",
    "FILTERED",
    "POINTWISE",
    "build_block",
    "derive_seed",
    "get_weights",
    "most_ranks",
    "set_factors",
    "set_separable",
    "set_weights",
]
