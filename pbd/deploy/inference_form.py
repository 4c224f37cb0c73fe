"""The inference form of a network: the same outputs from fewer operations. It is not meant to be trained further."""

import keras

from pbd import blocks
from pbd.networks import folding, graph


def fold(model: keras.Model) -> keras.Model:
    """Return a copy that computes the same outputs in inference mode, with fewer operations.

    Batch normalisations are folded into the convolutions before them. Then each block design rewrites its blocks in
    the form that runtimes compute fastest (see `BlockDesign.for_inference`).

    Args:
        model: flat and functional (see `graph.flatten`), with its weights.
    """
    model = graph.flatten(model)
    # Folding a normalisation can expose another one behind it.
    while foldable := folding.find_foldable(model):
        model = folding.fold(model, foldable)
    for design in blocks.designs():
        model = design.for_inference(model)
    return graph.flatten(model)
