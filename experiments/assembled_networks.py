"""Random networks assembled from pieces of a teacher: a design and a width for each layer, branches left out.

Speed does not depend on weights: blocks and narrower layers have random ones.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import keras
import numpy as np

from pbd import blocks
from pbd.blockwise.tasks import describe_layer
from pbd.deploy import inference_form, pieces
from pbd.networks import fusion, graph
from pbd.records import Layer

KEEP = "keep"
FRACTIONS = (1.0, 0.75, 0.5, 0.33, 0.25)
"""Widths to draw from, as fractions of the teacher's."""
DROPPED = 0.1
"""Probability that a residual branch is left out."""
KEPT = 0.3
"""Probability that a layer keeps its design."""
_BETWEEN = (
    keras.layers.Activation,
    keras.layers.AveragePooling2D,
    keras.layers.Dropout,
    keras.layers.MaxPooling2D,
    keras.layers.ReLU,
    keras.layers.ZeroPadding2D,
)
"""Layers for any number of channels."""


class Choice(NamedTuple):
    """What stands in the place of a layer."""

    layer: str
    design: str
    inputs: int
    """Input channels."""
    outputs: int


@dataclass(frozen=True)
class Assembled:
    """A network, and the pieces that it consists of, in the places of the teacher's layers."""

    model: keras.Model
    chosen: tuple[Choice, ...]


class Assembler:
    """Assembles networks from a teacher."""

    def __init__(self, teacher: keras.Model, designs: Sequence[str]) -> None:
        """Find what can be changed.

        Args:
            teacher: flat and functional.
            designs: names of block designs.
        """
        self.network = inference_form.fold(teacher)
        self._users = fusion.consumers(self.network)
        self._designs = designs
        convolutions = [layer for layer, _ in graph.find_convolutions(self.network)]
        self._layers = {layer.name: describe_layer(0, layer, self.network) for layer in convolutions}
        self._readers = {layer.name: self._reader(layer) for layer in convolutions}
        self._branches = {end: branch for end in self._layers if (branch := self._branch(end))}

    def teacher(self) -> Assembled:
        """Return the teacher in its inference form."""
        return Assembled(self.network, tuple(self._whole(name, KEEP) for name in self._layers))

    def uniform(self, design: str) -> Assembled:
        """Return the network in which every layer but the first has this design, where it applies."""
        names = list(self._layers)
        return self._assembled([self._whole(names[0], KEEP), *(self._whole(name, design) for name in names[1:])], [])

    def random(self, generator: np.random.Generator) -> Assembled:
        """Return a random network."""
        inputs: dict[str, int] = {}
        choices = []
        for number, (name, layer) in enumerate(self._layers.items()):
            outputs, reader = layer.output_shape[-1], self._readers[name]
            if reader is not None:
                outputs = inputs[reader] = max(1, round(generator.choice(FRACTIONS) * outputs))
            keeps = number == 0 or generator.random() < KEPT
            design = KEEP if keeps else str(generator.choice(self._designs))
            choices.append(self._possible(Choice(name, design, inputs.get(name, layer.input_shape[-1]), outputs)))
        return self._assembled(choices, [end for end in self._branches if generator.random() < DROPPED])

    def piece(self, choice: Choice) -> keras.Model:
        """Return the piece of a choice."""
        layer = self._layers[choice.layer]
        return pieces.piece(self.network, choice.layer, self._builder(choice), (*layer.input_shape[:2], choice.inputs))

    def _whole(self, name: str, design: str) -> Choice:
        layer = self._layers[name]
        return self._possible(Choice(name, design, layer.input_shape[-1], layer.output_shape[-1]))

    def _possible(self, choice: Choice) -> Choice:
        """Return the choice, without its design if that does not apply."""
        if choice.design == KEEP or blocks.get(choice.design).applies_to(self._record(choice)) is None:
            return choice
        return choice._replace(design=KEEP)

    def _assembled(self, choices: Sequence[Choice], dropped: Sequence[str]) -> Assembled:
        builders = {
            choice.layer: self._builder(choice) for choice in choices if choice != self._whole(choice.layer, KEEP)
        }
        for end in dropped:
            builders[self._branches[end][0]] = lambda shortcut: shortcut
        left_out = {name for end in dropped for name in self._branches[end][1]}
        chosen = tuple(choice for choice in choices if choice.layer not in left_out)
        return Assembled(graph.swap(self.network, builders), chosen)

    def _builder(self, choice: Choice) -> pieces.Builder:
        if choice.design == KEEP:
            return pieces.narrowed(self.network.get_layer(choice.layer), choice.outputs)
        return functools.partial(blocks.get(choice.design).build, layer=self._record(choice), seed=0)

    def _record(self, choice: Choice) -> Layer:
        layer = self._layers[choice.layer]
        input_shape = (*layer.input_shape[:2], choice.inputs)
        return replace(layer, input_shape=input_shape, output_shape=(*layer.output_shape[:2], choice.outputs))

    def _reader(self, layer: keras.layers.Conv2D) -> str | None:
        """Return the only convolution that reads the outputs of a layer, if it takes any number of channels."""
        operation = layer
        while len(self._users[id(operation.output)]) == 1:
            operation = self._users[id(operation.output)][0][0]
            if operation.name in self._layers:
                return str(operation.name)
            if not isinstance(operation, _BETWEEN):
                return None
        return None

    def _branch(self, end: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the addition behind a branch that ends with this layer, and the layers of the branch.

        None if the layer does not end a branch, or the shortcut has layers of its own.
        """
        layer = self.network.get_layer(end)
        users = self._users[id(layer.output)]
        if len(users) != 1 or not isinstance(users[0][0], keras.layers.Add):
            return None
        addition = users[0][0]
        others = [number for number, term in enumerate(addition.input) if term is not layer.output]
        start = next((name for name, reader in self._readers.items() if reader == end), None)
        if start is None or len(others) != 1 or addition.input[others[0]] is not self.network.get_layer(start).input:
            return None
        return addition.name, (start, end)


def pieces_of(assembler: Assembler, networks: Sequence[Assembled]) -> dict[Choice, keras.Model]:
    """Return the pieces of these networks, each once."""
    chosen = dict.fromkeys(choice for network in networks for choice in network.chosen)
    return {choice: assembler.piece(choice) for choice in chosen}
