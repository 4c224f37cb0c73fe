"""The inference form of a network: the same outputs from fewer operations; not to be trained further."""

import keras

from pbd import blocks
from pbd.networks import graph
from pbd.networks.folding import normalised_layers, without_normalisations


def fold(model: keras.Model) -> keras.Model:
    """Return a copy that computes the same in inference mode.

    Batch normalisations become part of the convolutions before them, and each block design writes its blocks as
    runtimes compute them fastest.

    Args:
        model: flat and functional (see `graph.flatten`), with its weights.
    """
    model = graph.flatten(model)
    while normalised := normalised_layers(model):  # one normalisation may follow another
        model = without_normalisations(model, normalised)
    for design in blocks.designs():
        model = design.for_inference(model)
    return graph.flatten(model)
