"""How long pieces of networks take where they are deployed.

A piece is a part of a network from one feature map to another: a layer as it is, a block that replaces it, either with
fewer channels. It is measured inside a small network, and what the same network takes without the piece is subtracted.
"""

import tempfile
from collections.abc import Hashable, Mapping, MutableMapping
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np

from pbd.deploy import latency, pass_time
from pbd.deploy.piece_cache import PieceCache
from pbd.deploy.runtimes.base import Runner
from pbd.deploy.targets import Target
from pbd.errors import BadInputError
from pbd.networks import digest, graph, precision
from pbd.system import random_state

_IMAGE_CHANNELS = 4
Key = TypeVar("Key", bound=Hashable)


@random_state.preserved()
def measure(
    pieces: Mapping[Key, keras.Model],
    target: Target,
    batch: int = 1,
    threads: int = 1,
    cache: MutableMapping[str, float] | None = None,
) -> dict[Key, float]:
    """Return the seconds that each piece adds to a forward pass of a network.

    Pieces of the same structure are measured once, whatever their names and weights. What is measured is cached piece
    by piece.

    Args:
        pieces: from a feature map (height, width, channels) to another, with the activation behind it.
        target: where they run.
        batch: images in a pass.
        threads: CPU threads. With one thread CPU time is measured, which other processes hardly change.
        cache: seconds by signature; by default the file of these conditions among the user's caches.

    Raises:
        BadInputError: a piece does not map one feature map of fixed shape to another, or cannot be exported.
    """
    cache = PieceCache.of(target, batch, threads) if cache is None else cache
    signatures = {key: digest.structure_digest(piece) for key, piece in pieces.items()}
    missing = {signatures[key]: piece for key, piece in pieces.items() if signatures[key] not in cache}
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(target, batch, threads, Path(folder))
        for signature, piece in missing.items():
            cache[signature] = bench.seconds(piece)
    return {key: cache[signature] for key, signature in signatures.items()}


@random_state.preserved()
def measure_networks(
    networks: Mapping[Key, keras.Model], target: Target, batch: int = 1, threads: int = 1
) -> dict[Key, float]:
    """Return the seconds of a forward pass of whole networks, measured as pieces are; nothing is cached.

    Args:
        networks: functional or sequential, one input of images of a fixed shape, one output of class scores.
        target: where they run.
        batch: images in a pass.
        threads: CPU threads.

    Raises:
        BadInputError: a network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(target, batch, threads, Path(folder))
        flat = {key: precision.in_float32(graph.flatten(network)) for key, network in networks.items()}
        runners = [bench.runner(network) for network in flat.values()]
        images = [_random_images(network, batch) for network in flat.values()]
        return dict(zip(flat, pass_time.least_seconds(runners, images, threads), strict=True))


def in_context(shape: tuple[int, ...], piece: keras.Model | None = None) -> keras.Model:
    """Return a small network that contains a piece, or, without one, all of the network but the piece.

    Before the piece is a 1 x 1 convolution with a ReLU, so that its input has the layout and, in 8-bit integers, the
    type that it has between layers; behind it is a maximum over at most 4 pixels, which costs next to nothing.

    Args:
        shape: height, width and channels of the input of the piece.
        piece: the piece.
    """
    image = keras.Input((*shape[:2], _IMAGE_CHANNELS))
    x = keras.layers.ReLU()(keras.layers.Conv2D(shape[-1], 1)(image))
    if piece is not None:
        x = piece(x)
    height, width = x.shape[1:3]
    x = keras.layers.MaxPooling2D((min(2, height), min(2, width)), strides=(height, width))(x)
    return precision.in_float32(graph.flatten(keras.Model(image, keras.layers.Flatten()(x))))


class _Bench:
    """Writes, loads and measures networks in one target."""

    def __init__(self, target: Target, batch: int, threads: int, folder: Path) -> None:
        self._target, self._batch, self._threads, self._folder = target, batch, threads, folder
        self._empty: dict[tuple[int, ...], Runner] = {}
        self._files = 0

    def seconds(self, piece: keras.Model) -> float:
        """Return the seconds of a piece: those of the network that contains it less those without it, at least 0."""
        shape = _shape_of(piece)
        network = in_context(shape, piece)
        if shape not in self._empty:
            self._empty[shape] = self.runner(in_context(shape))
        images = _random_images(network, self._batch)
        runners = self.runner(network), self._empty[shape]
        with_piece_s, without_s = pass_time.least_seconds(runners, [images, images], self._threads)
        return max(with_piece_s - without_s, 0.0)

    def runner(self, network: keras.Model) -> Runner:
        """Return the forward pass of a flat network in the target."""
        self._files += 1
        file = latency.deployed_file("", network, self._target, self._folder / str(self._files))
        return self._target.load(file.path, self._threads)


def _shape_of(piece: keras.Model) -> tuple[int, ...]:
    shapes = [tuple(tensor.shape[1:]) for tensor in (*piece.inputs, *piece.outputs)]
    if len(shapes) != 2 or any(len(shape) != 3 or None in shape for shape in shapes):
        raise BadInputError(
            "a piece must map one feature map (height, width, channels) of fixed shape to another. "
            f"Received: {piece.name!r} with {shapes}. Build it with one keras.Input of fixed shape."
        )
    return shapes[0]


def _random_images(network: keras.Model, batch: int) -> np.ndarray:
    shape = (batch, *network.inputs[0].shape[1:])
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
