"""Multiply-accumulates and parameters of a layer or its block, for a number of output channels that are read."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import keras

from pbd import blocks
from pbd.deploy import inference_form
from pbd.networks import channels, cost, folding, graph
from pbd.networks.residuals import find_residuals
from pbd.records import Layer
from pbd.student.candidates import Costs


def count(layer: Layer, design: str | None, outputs: int) -> Costs:
    """Return `macs` (per image) and `params` of a layer or its block.

    Args:
        layer: the layer of the teacher.
        design: the design of the block; None for the layer itself.
        outputs: the number of output channels that are read; a kept layer computes only these.
    """
    if design is None:
        share = outputs / layer.output_shape[-1]
        return {"macs": layer.macs * share, "params": layer.params * share}
    return _of_block(layer.without_place(), design, outputs)[0]


def saved_behind(behind: Costs, layer: Layer, design: str | None, outputs: int) -> Costs:
    """Return what layers behind another one, or behind its block, save if they get only the channels that are read.

    Args:
        behind: the costs of these layers (see `behind_layers`).
        layer: see `count`, as for `design` and `outputs`.
    """
    computed = outputs if design is None else _of_block(layer.without_place(), design, outputs)[1]
    return {name: amount * (1 - computed / layer.output_shape[-1]) for name, amount in behind.items()}


@functools.lru_cache(maxsize=4096)
def _of_block(layer: Layer, design: str, outputs: int) -> tuple[Costs, int]:
    """Return the costs of a block and how many outputs it computes: more than are read if it reads them itself."""
    block = _block(layer, design, outputs)
    return {"macs": float(cost.count_macs(block)), "params": float(cost.count_params(block))}, block.output.shape[-1]


@functools.lru_cache(maxsize=4096)
def _folded_params(layer: Layer, design: str, outputs: int, normalised: bool) -> float:
    """Return the parameters of a folded block and, if it is `normalised`, of the normalisation behind it."""
    block = _block(layer, design, outputs)
    if normalised:
        block = keras.Model(block.inputs[0], keras.layers.BatchNormalization()(block.outputs[0]))
    return float(cost.count_params(folding.fold_all(block)))


def _block(layer: Layer, design: str, outputs: int) -> keras.Model:
    block = blocks.build_block(blocks.get(design), layer, seed=0)
    if outputs < layer.output_shape[-1]:
        block = channels.restricted(graph.swap(block, blocks.constant_selections(block)), outputs)
    return block


def behind_layers(teacher: keras.Model) -> Mapping[str, Costs]:
    """Return `macs` and `params` of what computes each channel of a convolution alone, before its only reader reads it.

    If the reader's block reads a part of the channels, these layers, such as normalisations, lose the same share, as do
    further calls of a shared convolution. What lies inside a residual block that contains neither the convolution nor
    the reader is not counted: it may be gone.

    Args:
        teacher: flat and functional.

    Returns:
        The costs by the name of the convolution.
    """
    around = [{each.name for each in residual.operations} for residual in find_residuals(teacher).values()]
    calls, costs = dict(cost.layer_calls(teacher)), dict[str, Costs]()
    for name, (*between, reader) in channels.up_to_reader(teacher).items():
        layers = [
            teacher.get_layer(each)
            for each in between
            if not any(each in inside and inside.isdisjoint((name, reader)) for inside in around)
        ]
        first = teacher.get_layer(name)
        macs = sum(cost.layer_macs(layer) * calls[layer] for layer in layers)
        macs += cost.layer_macs(first) * (calls[first] - 1)
        costs[name] = {"macs": float(macs), "params": float(sum(layer.count_params() for layer in layers))}
    return costs


@dataclass(frozen=True)
class Folded:
    """The teacher as its file holds it, with normalisations folded into convolutions: each leaves a bias at most."""

    of_layers: Mapping[str, int]
    """The parameters of layers and residual blocks, by name."""
    behind: Mapping[str, Costs]
    """See `behind_layers`."""
    normalised: Collection[str]
    """The layers whose normalisation was folded into them."""

    @classmethod
    def of(cls, teacher: keras.Model) -> "Folded":
        """Return the folded form of a teacher, which is flat and functional."""
        folded = inference_form.fold(teacher)
        layers = {layer.name: layer.count_params() for layer in folded.layers}
        residuals = {name: residual.params for name, residual in find_residuals(folded).items()}
        return cls({**layers, **residuals}, behind_layers(folded), folding.find_foldable(teacher).keys())

    def params(self, layer: Layer, design: str | None, outputs: int) -> float:
        """Return the parameters of a layer or its block, without what the layers behind it save.

        Args:
            layer: see `count`, as for `design` and `outputs`.
            design: the design of the block; None for the layer itself.
            outputs: the number of output channels that are read.
        """
        behind = self.behind.get(layer.name)
        saved = saved_behind(behind, layer, design, outputs)["params"] if behind else 0.0
        if design is not None:
            return _folded_params(layer.without_place(), design, outputs, layer.name in self.normalised) - saved
        return self.of_layers.get(layer.name, layer.params) * outputs / layer.output_shape[-1] - saved
