"""The inference form of a network: the same outputs from fewer operations. It is not meant to be trained further."""

import keras

from pbd import blocks
from pbd.networks import folding, fusion, graph


def fold(model: keras.Model) -> keras.Model:
    """Return a copy that computes the same outputs in inference mode, with fewer operations.

    Batch normalisations are folded into the convolutions before them. Then each block design rewrites its blocks in
    the form that runtimes compute fastest (see `BlockDesign.for_inference`), unless TensorFlow would compute that form
    wrongly (see `networks.fusion`).

    Args:
        model: flat and functional (see `graph.flatten`), with its weights.
    """
    model = graph.flatten(model)
    # Folding a normalisation can expose another one behind it.
    while foldable := folding.find_foldable(model):
        model = folding.fold(model, foldable)
    for design in blocks.designs():
        model = _rewritten(design, model)
    return model


def _rewritten(design: blocks.BlockDesign, model: keras.Model) -> keras.Model:
    rewritten = design.for_inference(model)
    if rewritten is model:
        return model
    rewritten = graph.flatten(rewritten)
    return rewritten if fusion.misfused(rewritten) <= fusion.misfused(model) else model
