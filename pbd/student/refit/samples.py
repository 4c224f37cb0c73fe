"""Places of feature maps at which the output of a convolution is compared with its target."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pbd.blocks.patches import Window, all_patches
from pbd.collective import Collective, all_reduce_sums

MOST_PATCHES = 2**17
"""More patches determine a kernel no better."""
MOST_OPERATIONS = 4e10
"""Multiplications and additions for the second moment of a layer; fewer patches are used for larger kernels."""
PATCHES_PER_VALUE = 4
"""Fewest patches for each value of a patch, whatever they cost; the ridge makes up for what they do not determine."""
HELD_OUT = 4
"""Of a batch, about every fourth image is held out to choose the ridge; of one image, every fourth row of places."""


@dataclass(frozen=True)
class Maps:
    """Feature maps around a convolution on a batch, (images, rows, columns, channels)."""

    inputs: np.ndarray
    """The inputs of the convolution."""
    added: np.ndarray | None
    """What the shortcut adds to its output, in the student."""
    target: np.ndarray
    """The target of the output, with what is added to it."""


@dataclass(frozen=True)
class Samples:
    """Input patches and targets of a convolution at sampled places; the first ones are to fit, the others held out."""

    patches: np.ndarray
    """(places, values), in float32."""
    added: np.ndarray | None
    """(places, channels)."""
    target: np.ndarray
    """(places, channels)."""
    fitted: int
    """Number of places to fit."""

    def parts(self, errors: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Return patches and errors of the places to fit, and of those held out."""
        both = (slice(None, self.fitted), slice(self.fitted, None))
        return tuple((self.patches[part], errors[part]) for part in both)

    def centre(self, collective: Collective) -> np.ndarray:
        """Subtract the mean of all workers' patches from the patches, in place, and return it, (values,)."""
        sums = [self.patches.sum(axis=0, dtype=np.float64), np.array(float(len(self.patches)))]
        total, count = all_reduce_sums(collective, sums)
        mean = total / max(float(count), 1.0)
        np.subtract(self.patches, mean.astype(np.float32), out=self.patches)
        return mean


def take(batches: Iterable[Maps], layer: Window, images: int, values: int, channels: int) -> Samples:
    """Return the samples of this worker.

    Args:
        batches: this worker's.
        layer: the convolution.
        images: their number in all workers.
        values: the number of values of a patch.
        channels: the number of channels of the output.
    """
    taken: tuple[list[Maps], list[Maps]] = [], []
    for maps in batches:
        for is_held_out, some in _of_batch(maps, layer, images):
            taken[is_held_out].append(some)
    every = [*taken[False], *taken[True]]
    is_added = any(each.added is not None for each in every)
    fitted = sum(len(each.inputs) for each in taken[False])
    return Samples(
        np.concatenate([np.zeros((0, values), np.float32), *(each.inputs for each in every)]),
        np.concatenate([each.added for each in every if each.added is not None]) if is_added else None,
        np.concatenate([np.zeros((0, channels), np.float32), *(each.target for each in every)]),
        fitted,
    )


def _of_batch(maps: Maps, layer: Window, images: int) -> Iterator[tuple[bool, Maps]]:
    """Yield patches (places, values) and outputs (places, channels), and whether they are held out."""
    windows, channels = all_patches(maps.inputs, layer), maps.target.shape[-1]
    values = math.prod(windows.shape[3:])
    patches = max(PATCHES_PER_VALUE * values, min(MOST_PATCHES, MOST_OPERATIONS / (2 * values**2)))
    per_image = max(1, int(patches) // images)
    step = math.ceil(math.sqrt(math.prod(windows.shape[1:3]) / per_image)) or 1
    # The images have grids with different offsets, so that all parts of a map count, borders included.
    for offset in range(min(step, len(maps.inputs))):
        parts = [np.arange(offset, size, step) for size in windows.shape[:3]]
        divided = 0 if len(maps.inputs) > 1 else 1
        is_held_out = (np.arange(len(parts[divided])) + offset) % HELD_OUT == 0
        for held_out in (False, True):
            chosen = [part[is_held_out == held_out] if axis == divided else part for axis, part in enumerate(parts)]
            place = np.ix_(*chosen)
            added = None if maps.added is None else maps.added[place].reshape(-1, channels)
            yield held_out, Maps(windows[place].reshape(-1, values), added, maps.target[place].reshape(-1, channels))
