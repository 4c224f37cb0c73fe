"""The latency of layers and their blocks in a target, for the choice among candidates."""

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import keras

from pbd import blocks
from pbd.deploy import inference_form, piece_times, pieces
from pbd.deploy.latency_model import LatencyModel, MeasuredNetwork, PieceTime
from pbd.deploy.targets import Target
from pbd.networks import channels, digest, graph
from pbd.networks.residuals import find_residuals
from pbd.records import RESIDUAL, Layer
from pbd.student import costs_of_blocks
from pbd.student.candidates import Costs, Piece


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of the pieces of networks that are assembled from a teacher.

    The layers of the teacher are measured, and blocks that were asked for with `with_measured`. The latency of another
    block is estimated as if it computed at the rate of its layer. Few blocks do, so that estimates are too low rather
    than too high: a choice that rests on them is tried, its blocks are measured, and what is not in it need not be.
    """

    teacher: keras.Model
    """Written for inference."""
    layers: Mapping[str, Layer]
    target: Target
    batch: int
    """Images in a pass."""
    model: LatencyModel
    whole: MeasuredNetwork
    """The teacher; the model was corrected with it."""
    coldness: float = 0.0
    """Coldness of the networks that the costs are for (see `LatencyModel.coldness`)."""

    @property
    def of_teacher(self) -> float:
        """Measured seconds of a pass of the teacher."""
        return self.whole.seconds

    @property
    def of_kept_layers(self) -> float:
        """Seconds of a pass of the teacher with the costs that its layers have for `cost_of`."""
        return self.model.base_s + sum(self.model.piece_s(piece, self.coldness) for piece in self.whole.chosen)

    def cost_of(self, layer: Layer, design: str | None, outputs: int) -> Costs:
        """Return `latency`, the seconds of a layer or its block, measured or estimated (see `candidates.CostOf`)."""
        piece = (layer.name, design, outputs)
        if piece in self.model.times:
            return {"latency": self.model.piece_s(piece, self.coldness)}
        kept = self._layers_of(layer)
        macs = sum(self.layers[name].macs for name, _, _ in kept)
        seconds = sum(self.model.piece_s(each, self.coldness) for each in kept)
        if layer.kind == RESIDUAL and design is None:
            return {"latency": seconds}
        return {"latency": costs_of_blocks.count(layer, design, outputs)["macs"] * seconds / max(macs, 1)}

    def _layers_of(self, layer: Layer) -> list[Piece]:
        """Return the layer, or those inside a residual block."""
        if layer.kind != RESIDUAL:
            return [(layer.name, None, layer.output_shape[-1])]
        return [piece for piece in _kept(self.layers) if layer.name in self.layers[piece[0]].inside]

    def for_networks_like(self, used: Sequence[Piece]) -> "LatencyTable":
        """Return the table with the costs for networks as large as that of these pieces."""
        return replace(self, coldness=self.model.coldness(used))

    def unmeasured(self, used: Iterable[Piece]) -> list[Piece]:
        """Return those of these pieces whose latency is an estimate, each once."""
        return [piece for piece in dict.fromkeys(used) if piece not in self.model.times]

    def with_measured(self, used: Iterable[Piece]) -> "LatencyTable":
        """Return the table with these pieces measured, too."""
        missing = self.unmeasured(used)
        times = _measured(self.teacher, self.layers, missing, self.target, self.batch)
        return self._with(times)._in_place([piece for piece in missing if self.layers[piece[0]].kind == RESIDUAL])

    def _with(self, times: Mapping[Hashable, PieceTime]) -> "LatencyTable":
        return replace(self, model=replace(self.model, times={**self.model.times, **times}))

    def _in_place(self, replacing: Sequence[Piece]) -> "LatencyTable":
        """Return the table with the times of blocks that replace residual blocks as they are in the whole network.

        A residual block takes longer than the convolutions inside it: it has a shortcut, and in some runtimes it costs
        to keep its input until the addition. All that goes with it. By how much the network with the block is faster
        than its pieces say is therefore subtracted from the time of the block. Equal blocks are measured in one place.
        """
        times = dict[Hashable, PieceTime]()
        for first, equal in _alike(self.teacher, replacing).items():
            present = [piece for piece in _kept(self.layers) if first[0] not in self.layers[piece[0]].inside]
            further_s = self.model.predict([*present, first]) - self._seconds_with(first)
            times |= {piece: self.model.times[piece].less(further_s / self.model.scale) for piece in equal}
        return self._with(times)

    def _seconds_with(self, piece: Piece) -> float:
        """Return the seconds of a pass of the teacher with this block, measured in turn with the teacher."""
        name, design, outputs = piece
        block = _block(self.layers[name], design, outputs)
        network = graph.swap(self.teacher, {name: functools.partial(_called, block)})
        seconds = seconds_of({"teacher": self.teacher, "network": network}, self.target, self.batch)
        return seconds["network"] / seconds["teacher"] * self.of_teacher


def latency_table(teacher: keras.Model, layers: Mapping[str, Layer], target: Target, batch: int) -> LatencyTable:
    """Measure a teacher and its layers in a target, with one thread.

    Args:
        teacher: flat and functional.
        layers: the layers of the run, by name.
        target: a runtime and a precision.
        batch: images in a pass.
    """
    network = inference_form.without_normalisations(teacher)  # with all layers that `layers` names
    kept = tuple(_kept(layers))
    times = _measured(network, layers, kept, target, batch)
    whole = MeasuredNetwork(kept, seconds_of({"teacher": teacher}, target, batch)["teacher"])
    model = LatencyModel(times).corrected([whole])
    return LatencyTable(network, layers, target, batch, model, whole, model.coldness(kept))


def _kept(layers: Mapping[str, Layer]) -> list[Piece]:
    """Return the pieces of the teacher: all layers but residual blocks, which consist of them."""
    return [(name, None, layer.output_shape[-1]) for name, layer in layers.items() if layer.kind != RESIDUAL]


def seconds_of(networks: Mapping[str, keras.Model], target: Target, batch: int) -> dict[str, float]:
    """Return the seconds of a pass of whole networks, measured as their pieces are."""
    return piece_times.measure_networks(networks, target, (batch,))[batch]


def _measured(
    network: keras.Model, layers: Mapping[str, Layer], asked: Iterable[Piece], target: Target, batch: int
) -> dict[Hashable, PieceTime]:
    models = {key: _piece(network, layers[key[0]], *key[1:]) for key in asked}
    return dict[Hashable, PieceTime](piece_times.measure(models, target, (batch,))[batch].items())


def _piece(network: keras.Model, layer: Layer, design: str | None, outputs: int) -> keras.Model:
    """Return a layer or its block as a model, with the addition and the activation behind it."""
    if design is None:
        build = None
        if outputs < layer.output_shape[-1]:
            build = pieces.narrowed(network.get_layer(layer.name), outputs)
        return pieces.piece(network, layer.name, build)
    block = _block(layer, design, outputs)
    return pieces.piece(network, layer.name, functools.partial(_called, block), tuple(block.inputs[0].shape[1:]))


def _block(layer: Layer, design: str | None, outputs: int) -> keras.Model:
    """Return the block of a design that computes so many outputs."""
    assert design is not None, "a layer that is kept has no block"
    block = blocks.build_block(blocks.get(design), layer, seed=0)
    block = graph.swap(block, blocks.constant_selections(block))
    return channels.restricted(block, outputs) if layer.producer or outputs < layer.output_shape[-1] else block


def _alike(network: keras.Model, replacing: Iterable[Piece]) -> dict[Piece, list[Piece]]:
    """Return, by the first of them, the blocks of one design in the places of residual blocks of one structure."""
    residuals, firsts = find_residuals(network), dict[Hashable, Piece]()
    alike = dict[Piece, list[Piece]]()
    for name, design, outputs in replacing:
        residual = residuals[name]
        structure = digest.structure_digest(keras.Model(residual.input, residual.addition.output))
        first = firsts.setdefault((structure, design, outputs), (name, design, outputs))
        alike.setdefault(first, []).append((name, design, outputs))
    return alike


def _called(block: keras.Model, x: object) -> object:
    return block(x)
