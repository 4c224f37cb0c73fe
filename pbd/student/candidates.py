"""The choice among candidates as a problem for the solver: its parts, their options, damages and costs.

A part is a layer, or a residual block that a block can replace, together with the layers inside it: either a block
replaces all of it, or each layer inside has a block of its own or none. The damage of an option is the Kullback-Leibler
divergence of the teacher with one block alone, summed over the blocks of the option. The cost of a layer depends on how
many of its output channels are read: all, or those that the block of its only reader reads.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pbd import blocks
from pbd.records import RESIDUAL, BlockKey, BlockResult, Layer
from pbd.student.solver import Coupling, Problem

MOST_OPTIONS = 200
"""Most options of a residual block. Of more, only those count that no other one beats in damage and every cost."""

Costs = Mapping[str, float]
"""By resource."""
Piece = tuple[str, str | None, int]
"""A layer, the design of its block (None: the layer is kept), and the number of its output channels to compute."""
CostOf = Callable[[Layer, str | None, int], Costs]
"""Returns the costs of a layer for a design (None: the layer is kept) and the number of output channels to compute."""


@dataclass(frozen=True)
class Option:
    """Designs for the layers of a part; layers without one are kept, or vanish with the residual block around them."""

    designs: Mapping[str, str]
    damage: float
    costs: Costs


@dataclass(frozen=True)
class Candidates:
    """The parts of a teacher with their options, as a problem for the solver."""

    layers: Mapping[str, Layer]
    parts: tuple[tuple[Option, ...], ...]
    problem: Problem

    def designs(self, options: Sequence[int]) -> dict[str, str]:
        """Return the designs of a choice (an option for each part), by layer."""
        chosen = [part[option] for part, option in zip(self.parts, options, strict=True)]
        return {layer: design for option in chosen for layer, design in option.designs.items()}

    def pieces(self, options: Sequence[int]) -> list[Piece]:
        """Return what a network of a choice consists of, in place of the layers of the teacher."""
        designs = self.designs(options)
        replaced = {name for name in designs if self.layers[name].kind == RESIDUAL}
        present = [
            layer
            for layer in self.layers.values()
            if (layer.name in replaced if layer.kind == RESIDUAL else not replaced.intersection(layer.inside))
        ]
        return list(_pieces(present, designs))


def gather(
    layers: Iterable[Layer], results: Mapping[BlockKey, BlockResult], cost_of: CostOf, teacher: Costs
) -> Candidates:
    """Return the candidates among the results of a run; a block without a finite divergence is none.

    Args:
        layers: those that a block of the run can replace, and all convolutions inside residual blocks among them: what
            these cost is saved with the residual block.
        results: of the run.
        cost_of: see `CostOf`.
        teacher: the costs of the whole teacher.
    """
    maker = _Maker({layer.name: layer for layer in layers}, results, cost_of, tuple(teacher))
    replaceable = {layer.name for layer in maker.layers.values() if layer.kind == RESIDUAL and maker.designs(layer)[1:]}
    outermost = [layer for layer in maker.layers.values() if not replaceable.intersection(layer.inside)]
    residuals = [layer for layer in outermost if layer.name in replaceable]
    alone = [layer for layer in outermost if layer.kind != RESIDUAL]
    parts = [maker.of_residual(residual) for residual in residuals]
    parts += [maker.of_layer(layer) for layer in alone]
    kept = [cost_of(layer, None, layer.output_shape[-1]) for layer in (*residuals, *alone)]
    numbers = {layer.name: number for number, layer in enumerate(alone, start=len(residuals))}
    problem = Problem(
        damages=tuple(np.array([option.damage for option in part]) for part in parts),
        costs={name: tuple(np.array([o.costs[name] for o in part]) for part in parts) for name in teacher},
        couplings=tuple(
            Coupling(numbers[layer.producer], numbers[layer.name], maker.savings(layer))
            for layer in alone
            if layer.producer in numbers
        ),
        base={name: cost - sum(costs[name] for costs in kept) for name, cost in teacher.items()},
    )
    return Candidates(maker.layers, tuple(parts), problem)


def _pieces(layers: Sequence[Layer], designs: Mapping[str, str]) -> Iterator[Piece]:
    """Yield each layer, the design of its block (None: it is kept), and the number of its outputs that are read."""
    readers = {layer.producer: layer for layer in layers if layer.producer}
    for layer in layers:
        reader = readers.get(layer.name)
        outputs = layer.output_shape[-1] if reader is None else _channels_read(reader, designs.get(reader.name))
        yield layer.name, designs.get(layer.name), outputs


def _channels_read(layer: Layer, design: str | None) -> int:
    return layer.input_shape[-1] if design is None else blocks.get(design).channels_read(layer)


@dataclass(frozen=True)
class _Maker:
    """Makes the options of parts."""

    layers: Mapping[str, Layer]
    results: Mapping[BlockKey, BlockResult]
    cost_of: CostOf
    resources: tuple[str, ...]

    def inside(self, residual: Layer) -> list[Layer]:
        """Return the convolutions inside a residual block."""
        return [each for each in self.layers.values() if residual.name in each.inside and each.kind != RESIDUAL]

    def designs(self, layer: Layer) -> tuple[str | None, ...]:
        """Return None, for the layer itself, and the designs of its candidates."""
        usable = [
            key.design
            for key, result in self.results.items()
            if key.layer == layer.name and result.status == "trained"
            if result.val_kl is not None and math.isfinite(result.val_kl)
        ]
        return (None, *usable)

    def of_layer(self, layer: Layer) -> tuple[Option, ...]:
        """Return the options of a layer."""
        return tuple(self._option([layer], {layer.name: design}) for design in self.designs(layer))

    def of_residual(self, residual: Layer) -> tuple[Option, ...]:
        """Return the options of a residual block: all combinations of those inside, and those of the whole."""
        inner = self.inside(residual)
        combinations = itertools.product(*map(self.designs, inner))
        others = self._others(residual, inner)
        options = [
            self._option(inner, dict(zip((i.name for i in inner), each, strict=True)), others) for each in combinations
        ]
        whole = [self._option([residual], {residual.name: design}) for design in self.designs(residual)[1:]]
        options += whole
        return tuple(options if len(options) <= MOST_OPTIONS else _efficient(options))

    def _others(self, residual: Layer, inner: Sequence[Layer]) -> Costs:
        """Return what a residual block costs beside the convolutions inside: dense layers, normalisations, …"""
        whole, convolutions = self.cost_of(residual, None, residual.output_shape[-1]), self.total(inner, {})
        return {resource: whole[resource] - convolutions[resource] for resource in self.resources}

    def _option(
        self, layers: Sequence[Layer], designs: Mapping[str, str | None], others: Costs = MappingProxyType({})
    ) -> Option:
        chosen = {name: design for name, design in designs.items() if design is not None}
        damage = sum(self.results[BlockKey(name, design)].val_kl or 0.0 for name, design in chosen.items())
        costs = self.total(layers, chosen)
        return Option(chosen, damage, {name: cost + others.get(name, 0.0) for name, cost in costs.items()})

    def total(self, layers: Sequence[Layer], designs: Mapping[str, str]) -> Costs:
        """Return the summed costs of layers with these designs, the others kept."""
        pieces = _pieces(layers, designs)
        costs = [self.cost_of(self.layers[name], design, outputs) for name, design, outputs in pieces]
        return {resource: sum(each[resource] for each in costs) for resource in self.resources}

    def savings(self, reader: Layer) -> Mapping[str, np.ndarray]:
        """Return what the designs of a reader save in the layer before it, (designs of that layer, of the reader)."""
        layer = self.layers[reader.producer]
        full = layer.output_shape[-1]
        rows = []
        for design in self.designs(layer):
            whole = self.cost_of(layer, design, full)
            parts = [self.cost_of(layer, design, _channels_read(reader, other)) for other in self.designs(reader)]
            rows.append([{name: part[name] - whole[name] for name in self.resources} for part in parts])
        return {name: np.array([[cell[name] for cell in row] for row in rows]) for name in self.resources}


def _efficient(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other one beats or equals in damage and every cost."""
    values = np.array([[option.damage, *option.costs.values()] for option in options])
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for number in order:
        if not any(np.all(values[other] <= values[number]) for other in kept):
            kept.append(int(number))
    return [options[number] for number in sorted(kept)]
