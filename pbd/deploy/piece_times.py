"""How long pieces of networks take where they are deployed.

A piece is a part of a network from feature maps to a feature map: a layer as it is, or a block that replaces it, either
with fewer channels. It is measured inside a small network, less what the same network takes without it.
"""

import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np

from pbd.deploy import latency, pass_time
from pbd.deploy.latency_model import PieceTime
from pbd.deploy.piece_cache import PieceCache, Seconds
from pbd.deploy.runtimes.base import Runner
from pbd.deploy.targets import Target
from pbd.errors import BadInputError
from pbd.networks import digest, graph, precision
from pbd.system import random_state

GROUP = 16
"""Pieces that are measured in turn and then written to the cache."""
_IMAGE_CHANNELS = 4
Key = TypeVar("Key", bound=Hashable)


@random_state.preserved()
def measure(
    pieces: Mapping[Key, keras.Model],
    target: Target,
    batch_sizes: Sequence[int] = (1,),
    threads: int = 1,
    cache_folder: Path | None = None,
) -> dict[int, dict[Key, PieceTime]]:
    """Return the time that each piece adds to a forward pass of a network, by batch size.

    Pieces of the same structure are measured once, whatever their names and weights. `GROUP` pieces at a time are
    measured in turn, so that moments in which the machine is busy meet all of them, and then cached: if measuring is
    interrupted, the next call goes on with the pieces that are missing.

    Args:
        pieces: from one feature map (height, width, channels) or several to one, with the addition and the
            activation behind them (see `pieces.piece`).
        target: where they run.
        batch_sizes: numbers of images in a pass. Writing a piece takes longer than timing it, so a second batch size
            costs little.
        threads: CPU threads. With one thread CPU time is measured, which other processes hardly change.
        cache_folder: of the files with what was measured; by default a folder of the user's caches.

    Raises:
        BadInputError: a piece does not map feature maps of fixed shape to one, or cannot be exported.
    """
    caches = {batch: PieceCache.of(target, batch, threads, cache_folder) for batch in batch_sizes}
    signatures = {key: digest.structure_digest(piece) for key, piece in pieces.items()}
    unique = {signatures[key]: piece for key, piece in pieces.items()}
    missing = [signature for signature in unique if any(signature not in cache for cache in caches.values())]
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(target, threads, Path(folder))
            measured = bench.seconds([unique[signature] for signature in group], batch_sizes)
        for batch, cache in caches.items():
            cache.update({each: found for each, found in zip(group, measured[batch], strict=True) if each not in cache})
    size = 1 if target.int8 else 4
    sizes = {key: size * piece.count_params() for key, piece in pieces.items()}
    return {
        batch: {key: PieceTime(*cache[signatures[key]], sizes[key]) for key in pieces}
        for batch, cache in caches.items()
    }


@random_state.preserved()
def measure_networks(
    networks: Mapping[Key, keras.Model], target: Target, batch_sizes: Sequence[int] = (1,), threads: int = 1
) -> dict[int, dict[Key, float]]:
    """Return the seconds of a forward pass of whole networks, by batch size, measured as pieces are, but not cached.

    Args:
        networks: functional or sequential, one input of images of a fixed shape, one output of class scores.
        target: where they run.
        batch_sizes: numbers of images in a pass.
        threads: CPU threads.

    Raises:
        BadInputError: a network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(target, threads, Path(folder))
        flat = {key: precision.in_float32(graph.flatten(network)) for key, network in networks.items()}
        runners = [bench.runner(network) for network in flat.values()]
        measured = {}
        for batch in batch_sizes:
            images = [_random_images(network, batch) for network in flat.values()]
            measured[batch] = dict(zip(flat, pass_time.least_seconds(runners, images, threads), strict=True))
        return measured


def in_context(shapes: Sequence[tuple[int, ...]], piece: keras.Model | None = None) -> keras.Model:
    """Return a small network that contains a piece, or, without one, all of the network but the piece.

    Before each input of the piece is a 1 x 1 convolution with a ReLU, so that it has the layout and, in 8-bit integers,
    the type that feature maps have between layers; behind the piece is a maximum over at most 4 pixels, which costs
    next to nothing.

    Args:
        shapes: height, width and channels of the inputs of the piece.
        piece: the piece.

    Raises:
        BadInputError: the inputs of the piece have sizes of which none is a multiple of the others.
    """
    height, width = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    image = keras.Input((height, width, _IMAGE_CHANNELS))
    maps = [_feature_map(image, shape) for shape in shapes]
    ends = maps if piece is None else [piece(maps if len(maps) > 1 else maps[0])]
    pooled = [_few_pixels(end) for end in ends]
    scores = pooled[0] if len(pooled) == 1 else keras.layers.Concatenate()(pooled)
    return precision.in_float32(graph.flatten(keras.Model(image, scores)))


def _feature_map(image: Any, shape: tuple[int, ...]) -> Any:
    strides = tuple(-(-image.shape[axis + 1] // shape[axis]) for axis in (0, 1))
    x = keras.layers.Conv2D(shape[-1], 1, strides=strides, padding="same")(image)
    if tuple(x.shape[1:]) != shape:
        raise BadInputError(
            "the sizes of the inputs of a piece must be equal, or one a multiple of the others. "
            f"Received: {tuple(image.shape[1:3])} and {shape[:2]}. Leave the addition out of the piece."
        )
    return keras.layers.ReLU()(x)


def _few_pixels(x: Any) -> Any:
    height, width = x.shape[1:3]
    x = keras.layers.MaxPooling2D((min(2, height), min(2, width)), strides=(height, width))(x)
    return keras.layers.Flatten()(x)


class _Bench:
    """Writes, loads and measures networks in one target."""

    def __init__(self, target: Target, threads: int, folder: Path) -> None:
        self._target, self._threads, self._folder = target, threads, folder
        self._files = 0

    def seconds(self, pieces: Sequence[keras.Model], batch_sizes: Sequence[int]) -> dict[int, list[Seconds]]:
        """Return the seconds of each piece: those of the network that contains it less those without it, at least 0."""
        shapes = [_shapes_of(piece) for piece in pieces]
        empty = {each: in_context(each) for each in dict.fromkeys(shapes)}
        networks = [*empty.values(), *map(in_context, shapes, pieces)]
        runners = [self.runner(network) for network in networks]
        position = {each: number for number, each in enumerate(empty)}
        seconds = {}
        for batch in batch_sizes:
            images = [_random_images(network, batch) for network in networks]
            warm = pass_time.least_seconds(runners, images, self._threads)
            cold = pass_time.cold_seconds(runners, images, self._threads)
            pairs = enumerate(shapes, start=len(empty))
            seconds[batch] = [
                _difference((warm[number], cold[number]), (warm[position[each]], cold[position[each]]))
                for number, each in pairs
            ]
        return seconds

    def runner(self, network: keras.Model) -> Runner:
        """Return the forward pass of a flat network in the target."""
        self._files += 1
        file = latency.deployed_file("", network, self._target, self._folder / str(self._files))
        return self._target.load(file.path, self._threads)


def _difference(with_piece: tuple[float, float], without: tuple[float, float]) -> Seconds:
    """Return the seconds of a piece from those of the networks with it and without it, each warm and cold."""
    warm_s, cold_s = (max(long_s - short_s, 0.0) for long_s, short_s in zip(with_piece, without, strict=True))
    return Seconds(warm_s, max(warm_s, cold_s))


def _shapes_of(piece: keras.Model) -> tuple[tuple[int, ...], ...]:
    """Return height, width and channels of the inputs of a piece."""
    *shapes, output = (tuple(tensor.shape[1:]) for tensor in (*piece.inputs, *piece.outputs))
    if len(piece.outputs) != 1 or any(len(shape) != 3 or None in shape for shape in (*shapes, output)):
        raise BadInputError(
            "a piece must map feature maps (height, width, channels) of fixed shape to one feature map. "
            f"Received: {piece.name!r} from {shapes} to {output}. Build it with keras.Input of fixed shape."
        )
    return tuple(shapes)


def _random_images(network: keras.Model, batch: int) -> np.ndarray:
    shape = (batch, *network.inputs[0].shape[1:])
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
