"""Multiply-accumulates and parameters of a layer or its block, for a number of output channels that are read."""

import functools
from dataclasses import replace

from pbd import blocks
from pbd.networks import channels, cost, graph
from pbd.records import Layer
from pbd.student.candidates import Costs


def count(layer: Layer, design: str | None, outputs: int) -> Costs:
    """Return `macs` (per image) and `params` of a layer or its block.

    Args:
        layer: of the teacher.
        design: of the block; None for the layer itself.
        outputs: the number of output channels that are read; a kept layer computes only these.
    """
    if design is None:
        share = outputs / layer.output_shape[-1]
        return {"macs": layer.macs * share, "params": layer.params * share}
    return _of_block(replace(layer, index=0, name="layer", prefix_macs=0, inside=(), producer=""), design, outputs)


@functools.lru_cache(maxsize=4096)
def _of_block(layer: Layer, design: str, outputs: int) -> Costs:
    block = blocks.build_block(blocks.get(design), layer, seed=0)
    if outputs < layer.output_shape[-1]:
        block = channels.restricted(graph.swap(block, blocks.constant_selections(block)), outputs)
    return {"macs": float(cost.count_macs(block)), "params": float(cost.count_params(block))}
