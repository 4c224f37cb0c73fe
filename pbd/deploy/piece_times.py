"""Latency of pieces of networks, measured in their runtimes.

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
Size = tuple[int, int]
Shape = tuple[int, ...]
_Around = tuple[Size, tuple[Shape, ...]]


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
        target: the target in which they run.
        batch_sizes: numbers of images in a pass. Writing a piece takes longer than timing it, so a second batch size
            costs little.
        threads: CPU threads. With one thread CPU time is measured, which other processes hardly change.
        cache_folder: the folder of the files with what was measured; by default a folder of the user's caches.

    Raises:
        BadInputError: a piece does not map feature maps of fixed shape to one, or cannot be exported.
    """
    caches = {
        batch: PieceCache.of(target, batch, _known_threads(target, threads), cache_folder) for batch in batch_sizes
    }
    signatures = {key: digest.structure_digest(piece) for key, piece in pieces.items()}
    unique = {signatures[key]: piece for key, piece in pieces.items()}
    missing = [signature for signature in unique if any(signature not in cache for cache in caches.values())]
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(target, threads, Path(folder))
            measured = bench.seconds([unique[signature] for signature in group], batch_sizes)
        for batch, cache in caches.items():
            cache.update(
                {each: seconds for each, seconds in zip(group, measured[batch], strict=True) if each not in cache}
            )
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
        target: the target in which they run.
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
            measured[batch] = dict(
                zip(flat, pass_time.least_seconds(runners, images, _known_threads(target, threads)), strict=True)
            )
        return measured


def in_context(image_size: Size, shapes: Sequence[Shape], piece: keras.Model | None = None) -> keras.Model:
    """Return a small network that contains a piece, or, without one, what is around it.

    Before each input of the piece is a 1 x 1 convolution with a ReLU, so that it has the layout and, in 8-bit integers,
    the type that feature maps have between layers. It is cropped where no stride gives the size of the input, as next
    to a convolution without padding. Behind the piece is a maximum over at most 4 pixels, which costs next to nothing.

    Args:
        image_size: height and width of the image that the network takes.
        shapes: height, width and channels of the inputs of the piece; without a piece one shape, or none for the
            maximum of the image itself.
        piece: the piece.
    """
    image = keras.Input((*image_size, _IMAGE_CHANNELS))
    maps = [_feature_map(image, shape) for shape in shapes]
    if piece is None:
        (x,) = maps or [image]
    else:
        x = piece(maps if len(maps) > 1 else maps[0])
    return precision.in_float32(graph.flatten(keras.Model(image, _few_pixels(x))))


def _feature_map(image: Any, shape: Shape) -> Any:
    sizes = tuple(zip(image.shape[1:3], shape[:2], strict=True))
    strides = tuple(-(-of_image // size) for of_image, size in sizes)
    if any(-(-of_image // stride) != size for (of_image, size), stride in zip(sizes, strides, strict=True)):
        strides = tuple(of_image // size for of_image, size in sizes)
    x = keras.layers.Conv2D(shape[-1], 1, strides=strides, padding="same")(image)
    excess = tuple((0, computed - size) for computed, size in zip(x.shape[1:3], shape[:2], strict=True))
    if excess != ((0, 0), (0, 0)):
        x = keras.layers.Cropping2D(excess)(x)
    return keras.layers.ReLU()(x)


def _few_pixels(x: Any) -> Any:
    height, width = x.shape[1:3]
    x = keras.layers.MaxPooling2D((min(2, height), min(2, width)), strides=(height, width))(x)
    return keras.layers.Flatten()(x)


class _Bench:
    """Writes, loads and measures networks in one target."""

    def __init__(self, target: Target, threads: int, folder: Path) -> None:
        self._target, self._threads, self._folder = target, threads, folder
        self._known_threads = _known_threads(target, threads)
        self._files = 0

    def seconds(self, pieces: Sequence[keras.Model], batch_sizes: Sequence[int]) -> dict[int, list[Seconds]]:
        """Return the seconds of each piece, at least 0.

        They are those of the network that contains it, less those of a network with each of its inputs alone. What
        these have in common with every other network, the image and the maximum, is subtracted once.
        """
        inputs = [_shapes_of(piece) for piece in pieces]
        sizes = [_image_size(shapes) for shapes in inputs]
        around: dict[_Around, keras.Model] = {}
        for size, shapes in zip(sizes, inputs, strict=True):
            for each in ((), *((shape,) for shape in shapes)):
                if (size, each) not in around:
                    around[size, each] = in_context(size, each)
        networks = [*map(in_context, sizes, inputs, pieces), *around.values()]
        runners = [self.runner(network) for network in networks]
        seconds = {}
        for batch in batch_sizes:
            images = [_random_images(network, batch) for network in networks]
            warm_s, cold_s = (
                _added(times_s, dict(zip(around, times_s[len(pieces) :], strict=True)), sizes, inputs)
                for times_s in (
                    pass_time.least_seconds(runners, images, self._known_threads),
                    pass_time.cold_seconds(runners, images, self._known_threads),
                )
            )
            seconds[batch] = [Seconds(*pair) for pair in zip(warm_s, map(max, warm_s, cold_s), strict=True)]
        return seconds

    def runner(self, network: keras.Model) -> Runner:
        """Return the forward pass of a flat network in the target."""
        self._files += 1
        file = latency.deployed_file("", network, self._target, self._folder / str(self._files))
        return self._target.load(file.path, self._threads)


def _known_threads(target: Target, threads: int) -> int | None:
    """Return the CPU threads of a pass; `None` if the target uses those of the process, or a GPU."""
    return threads if target.runtime.takes_threads else None


def _added(
    times_s: Sequence[float],
    around_s: Mapping[_Around, float],
    sizes: Sequence[Size],
    inputs: Sequence[tuple[Shape, ...]],
) -> list[float]:
    """Return what each piece adds to the networks around its inputs, at least 0.

    Args:
        times_s: the times of the networks with the pieces, in their order.
        around_s: the times of the networks without piece, with one input of a piece or with the image only.
        sizes: for each piece, the size of the image.
        inputs: for each piece, the shapes of its inputs.
    """
    added_s = []
    for time_s, size, shapes in zip(times_s, sizes, inputs, strict=False):
        image_s = around_s[size, ()]
        added_s.append(max(time_s - image_s - sum(around_s[size, (shape,)] - image_s for shape in shapes), 0.0))
    return added_s


def _image_size(shapes: Sequence[Shape]) -> Size:
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _shapes_of(piece: keras.Model) -> tuple[Shape, ...]:
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
