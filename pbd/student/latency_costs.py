"""The latency of layers and their blocks in a target, for the choice among candidates."""

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import keras

from pbd import blocks
from pbd.deploy import inference_form, piece_times, pieces
from pbd.deploy.latency_model import LatencyModel, MeasuredNetwork, PieceTime
from pbd.deploy.targets import Target
from pbd.networks import channels, graph
from pbd.records import RESIDUAL, Layer
from pbd.student.candidates import Costs, Piece


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of the pieces of networks that are assembled from a teacher."""

    model: LatencyModel
    teacher: MeasuredNetwork
    """The teacher; the model was corrected with it."""
    coldness: float = 0.0
    """Of the networks that the costs are for (see `LatencyModel.coldness`)."""

    @property
    def of_teacher(self) -> float:
        """Measured seconds of a pass of the teacher."""
        return self.teacher.seconds

    def cost_of(self, layer: Layer, design: str | None, outputs: int) -> Costs:
        """Return `latency`, the seconds of a layer or its block (see `candidates.CostOf`)."""
        return {"latency": self.model.piece_s((layer.name, design, outputs), self.coldness)}

    def predict(self, used: Iterable[Piece]) -> float:
        """Return the predicted seconds of a pass of a network of these pieces."""
        return self.model.predict(used)

    def for_networks_like(self, used: Sequence[Piece]) -> "LatencyTable":
        """Return the table with the costs for networks as large as that of these pieces."""
        return replace(self, coldness=self.model.coldness(used))


def latency_table(
    teacher: keras.Model, layers: Mapping[str, Layer], asked: Iterable[Piece], target: Target, batch: int
) -> LatencyTable:
    """Measure pieces and the teacher in a target, with one thread.

    Args:
        teacher: flat and functional.
        layers: the layers of the run, by name.
        asked: the pieces, besides those of the teacher.
        target: a runtime and a precision.
        batch: images in a pass.
    """
    network = inference_form.fold(teacher)
    whole = [(name, None, layer.output_shape[-1]) for name, layer in layers.items() if layer.kind != RESIDUAL]
    models = {key: _piece(network, layers[key[0]], *key[1:]) for key in dict.fromkeys([*whole, *asked])}
    times = dict[Hashable, PieceTime](piece_times.measure(models, target, (batch,))[batch].items())
    seconds = seconds_of({"teacher": teacher}, target, batch)["teacher"]
    measured = MeasuredNetwork(tuple(whole), seconds)
    model = LatencyModel(times).corrected([measured])
    return LatencyTable(model, measured, model.coldness(whole))


def seconds_of(networks: Mapping[str, keras.Model], target: Target, batch: int) -> dict[str, float]:
    """Return the seconds of a pass of whole networks, measured as their pieces are."""
    return piece_times.measure_networks(networks, target, (batch,))[batch]


def _piece(network: keras.Model, layer: Layer, design: str | None, outputs: int) -> keras.Model:
    """Return a layer or its block as a model, with the addition and the activation behind it."""
    if design is None:
        build = None
        if outputs < layer.output_shape[-1]:
            build = pieces.narrowed(network.get_layer(layer.name), outputs)
        return pieces.piece(network, layer.name, build)
    block = blocks.build_block(blocks.get(design), layer, seed=0)
    block = graph.swap(block, blocks.constant_selections(block))
    if layer.producer or outputs < layer.output_shape[-1]:
        block = channels.restricted(block, outputs)
    return pieces.piece(network, layer.name, functools.partial(_called, block), tuple(block.inputs[0].shape[1:]))


def _called(block: keras.Model, x: object) -> object:
    return block(x)
