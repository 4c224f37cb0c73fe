"""The choice among candidates as a problem for the solver: its parts, their options, damages and costs.

A part is a layer or a residual block: it is kept, or has a block of one of its designs. What is inside a residual block
has one more option, removal, which it takes if and only if that residual block is not kept. The damage of a block is
the Kullback-Leibler divergence of the teacher with this block alone. The cost of a layer depends on how many of its
output channels are read: all, or those that the block of its only reader reads. What a residual block costs besides the
parts inside (dense layers, normalisations, …) is the cost of keeping it.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pbd import blocks
from pbd.records import RESIDUAL, BlockKey, BlockResult, Layer
from pbd.student.solver import Coupling, Problem

Costs = Mapping[str, float]
"""Costs by resource."""
Piece = tuple[str, str | None, int]
"""A layer, the design of its block (None: the layer is kept), and the number of its output channels to compute."""
CostOf = Callable[[Layer, str | None, int], Costs]
"""Returns the costs of a layer for a design (None: the layer is kept) and the number of output channels to compute."""


@dataclass(frozen=True)
class Part:
    """A layer or a residual block, which is kept (option 0), replaced by a block, or removed (the last option)."""

    layer: Layer
    designs: tuple[str, ...]
    """The designs of the options 1, 2, …"""
    within: str | None = None
    """The innermost residual block around it, of those that a block can replace; without one it is never removed."""

    @property
    def gone(self) -> int | None:
        """The number of the option to be removed (with its residual block), if it has one."""
        return None if self.within is None else 1 + len(self.designs)

    @property
    def options(self) -> int:
        """How many options it has."""
        return 1 + len(self.designs) + (self.within is not None)


@dataclass(frozen=True)
class Candidates:
    """The parts of a teacher with their options, as a problem for the solver."""

    layers: Mapping[str, Layer]
    parts: tuple[Part, ...]
    problem: Problem

    def designs(self, options: Sequence[int]) -> dict[str, str]:
        """Return the designs of a choice (an option for each part), by layer."""
        return {
            part.layer.name: part.designs[option - 1]
            for part, option in zip(self.parts, options, strict=True)
            if 1 <= option <= len(part.designs)
        }

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
        layers: the layers that a block of the run can replace; all convolutions inside residual blocks among them,
            since what these cost is saved with the residual block; and their producers (see `Layer.producer`).
        results: the results of the blocks of the run.
        cost_of: see `CostOf`.
        teacher: the costs of the whole teacher.
    """
    maker = _Maker({layer.name: layer for layer in layers}, results, cost_of, tuple(teacher))
    parts = maker.parts()
    numbers = {part.layer.name: number for number, part in enumerate(parts)}
    pairs = [(parts[numbers[part.layer.producer]], part) for part in parts if part.layer.producer in numbers]
    costs_of = maker.costs(parts)
    costs = {name: tuple(np.array([each[name] for each in options]) for options in costs_of) for name in teacher}
    problem = Problem(
        damages=tuple(map(maker.damages, parts)),
        costs=costs,
        couplings=tuple(
            Coupling(numbers[first.layer.name], numbers[reader.layer.name], maker.savings(first, reader))
            for first, reader in pairs
        ),
        groups=tuple(
            ((number, part.gone), (numbers[part.within], 0))
            for number, part in enumerate(parts)
            if part.within is not None and part.gone is not None
        ),
        base={name: cost - float(sum(each[0] for each in costs[name])) for name, cost in teacher.items()},
    )
    return Candidates(maker.layers, parts, problem)


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
    """Makes the parts, the damages and the costs of their options."""

    layers: Mapping[str, Layer]
    results: Mapping[BlockKey, BlockResult]
    cost_of: CostOf
    resources: tuple[str, ...]

    def parts(self) -> tuple[Part, ...]:
        """Return the residual blocks that a block can replace, and all other layers."""
        designs = {layer.name: self._designs(layer) for layer in self.layers.values()}
        replaceable = {layer.name for layer in self.layers.values() if layer.kind == RESIDUAL and designs[layer.name]}
        return tuple(
            Part(layer, designs[layer.name], self._innermost(replaceable.intersection(layer.inside)))
            for layer in self.layers.values()
            if layer.kind != RESIDUAL or layer.name in replaceable
        )

    def damages(self, part: Part) -> np.ndarray:
        """Return the damage of each option of a part."""
        damages = np.zeros(part.options)
        for option, design in enumerate(part.designs, start=1):
            damages[option] = self.results[BlockKey(part.layer.name, design)].val_kl
        return damages

    def costs(self, parts: Sequence[Part]) -> list[list[Costs]]:
        """Return the costs of each option of each part, all outputs computed."""
        nothing = dict.fromkeys(self.resources, 0.0)
        kept = {part.layer.name: self._cost(part.layer, None) for part in parts}
        inside = collections.defaultdict[str | None, list[Costs]](list)
        for part in parts:
            inside[part.within].append(kept[part.layer.name])
        costs = list[list[Costs]]()
        for part in parts:
            others = inside[part.layer.name]
            remaining = {
                name: cost - sum(each[name] for each in others) for name, cost in kept[part.layer.name].items()
            }
            replaced = [self._cost(part.layer, design) for design in part.designs]
            costs.append([remaining, *replaced, nothing][: part.options])
        return costs

    def savings(self, first: Part, reader: Part) -> Mapping[str, np.ndarray]:
        """Return what the options of a reader save in the layer before it, (options of that layer, of the reader)."""
        saved = {resource: np.zeros((first.options, reader.options)) for resource in self.resources}
        for row, design in enumerate((None, *first.designs)):
            whole = self._cost(first.layer, design)
            for column, other in enumerate((None, *reader.designs)):
                narrowed = self.cost_of(first.layer, design, _channels_read(reader.layer, other))
                for resource in self.resources:
                    saved[resource][row, column] = narrowed[resource] - whole[resource]
        return saved

    def _designs(self, layer: Layer) -> tuple[str, ...]:
        """Return the designs of the candidates for a layer."""
        return tuple(
            key.design
            for key, result in self.results.items()
            if key.layer == layer.name and result.status == "trained"
            if result.val_kl is not None and math.isfinite(result.val_kl)
        )

    def _innermost(self, residuals: Iterable[str]) -> str | None:
        return max(residuals, key=lambda name: len(self.layers[name].inside), default=None)

    def _cost(self, layer: Layer, design: str | None) -> Costs:
        return self.cost_of(layer, design, layer.output_shape[-1])
