"""The inference form of a network: the same outputs from fewer operations. It is not meant to be trained further."""

from collections.abc import Callable

import keras

from pbd import blocks
from pbd.networks import folding, fusion, graph
from pbd.system import initial_values


@initial_values.on_host()
def fold(model: keras.Model, int8: bool = False, runs_in_tensorflow: bool = True) -> keras.Model:
    """Return a copy that computes the same outputs in inference mode, with fewer operations.

    Batch normalisations are folded into the convolutions before them. Pooling of single pixels becomes max pooling.
    Then each block design rewrites its blocks in the form that runtimes compute fastest (see
    `BlockDesign.for_inference`), unless TensorFlow would compute that form wrongly (see `networks.fusion`).

    Args:
        model: flat and functional (see `graph.flatten`), with its weights.
        int8: the form that is fastest in 8-bit integers, and not the fastest in float32 (see `BlockDesign.for_int8`).
        runs_in_tensorflow: see `folding.find_foldable`. If not, all normalisations are folded that runtimes fold.
    """
    model = without_normalisations(model, runs_in_tensorflow)
    for design in blocks.designs():
        model = _rewritten(design.for_int8 if int8 else design.for_inference, model)
    return model


@initial_values.on_host()
def without_normalisations(model: keras.Model, runs_in_tensorflow: bool = True) -> keras.Model:
    """Return a copy as from `fold`, in which blocks keep the layers that they have in the model."""
    folded = folding.fold_all(model, runs_in_tensorflow)
    return _max_pooled(graph.flatten(model) if folded is model else folded)


def _max_pooled(model: keras.Model) -> keras.Model:
    """Return a copy in which each average pooling of single pixels is a max pooling; the model itself if it has none.

    Strided shortcuts select pixels in this way. Runtimes pass on the largest of some 8-bit integers, but round their
    average again.
    """
    builders = {
        layer.name: keras.layers.MaxPooling2D.from_config(layer.get_config())
        for layer in model.layers
        if type(layer) is keras.layers.AveragePooling2D and layer.pool_size == (1, 1)
    }
    return graph.swap(model, builders) if builders else model


def _rewritten(rewrite: Callable[[keras.Model], keras.Model], model: keras.Model) -> keras.Model:
    rewritten = rewrite(model)
    if rewritten is model:
        return model
    rewritten = graph.flatten(rewritten)
    return rewritten if fusion.misfused(rewritten) <= fusion.misfused(model) else model
