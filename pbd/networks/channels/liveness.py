"""Remove the channels on which no output depends (backward liveness analysis)."""

import keras
import numpy as np

from pbd.networks.channels import kernels
from pbd.networks.channels.rebuilding import is_reduced, rebuild
from pbd.networks.channels.tracing import Trace, trace


def remove_unread(model: keras.Model) -> keras.Model:
    """Return a copy of the model without the channels that no layer reads; it computes the same function.

    A layer reads a channel if a weight for it, of an output channel that is read itself, is not zero. A `take` reads
    nothing, but makes all channels unread that it does not select; it gets new indices, and vanishes if it selects
    all channels that remain. Channels that are added or multiplied are removed if none of them is read. Each tensor
    keeps at least one channel.

    Args:
        model: flat and functional.

    Returns:
        The copy, with the same layers and names; `model` itself if nothing can be removed.
    """
    traced = trace(model)
    remaining = _keep_one(traced, _read(traced, ~_can_be_removed(traced), by_weights=True))
    return rebuild(traced, remaining) if is_reduced(traced, remaining) else model


def restricted(block: keras.Model, outputs: int) -> keras.Model:
    """Return the part of a block that remains if only its first output channels are read: for its size and latency.

    Input channels that the block does not read are removed, too, so that a `take` before its layers vanishes.
    The values of weights do not matter.

    Args:
        block: flat and functional, from a feature map to a feature map.
        outputs: the number of output channels to keep, at least 1. More remain if the block itself reads them, as
            with a skip connection around a convolution.
    """
    traced = trace(block, fix_ends=False)
    needed = ~_can_be_removed(traced)
    needed[traced.of(traced.outputs)[:outputs]] = True
    return rebuild(traced, _keep_one(traced, _read(traced, needed, by_weights=False)))


def _can_be_removed(traced: Trace) -> np.ndarray:
    """Return whether the channels of each class may be removed."""
    return ~np.isin(np.arange(len(traced.classes)), list(traced.reasons))


def _read(traced: Trace, needed: np.ndarray, by_weights: bool) -> np.ndarray:
    """Return whether each class of channels is needed for those of other classes.

    Args:
        traced: the model.
        needed: the classes that are needed in any case.
        by_weights: whether weights of zero read nothing; else a layer reads all its input channels.
    """
    matrices = [(call, kernels.reads(call) if by_weights else None) for call in reversed(traced.readers())]
    needed, before = needed.copy(), -1
    while needed.sum() > before:  # again, since a shared layer may be called both before and behind another one
        before = int(needed.sum())
        for call, matrix in matrices:
            outputs = needed[traced.of(call.outputs[0])]
            read = outputs.any() if matrix is None else matrix[:, outputs].any(axis=1)
            needed[traced.of(call.input)] |= read
    return needed


def _keep_one(traced: Trace, remaining: np.ndarray) -> np.ndarray:
    """Return the classes that remain if each tensor keeps a channel."""
    remaining = remaining.copy()
    for channels in traced.tensors():
        classes = traced.of(channels)
        remaining[classes[0]] |= not remaining[classes].any()
    return remaining
