"""Batch statistics of a pruned network, whose feature maps have other means and variances than before."""

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from pbd.compression.context import Context


def re_estimate(pruned: keras.Model, before: keras.Model, context: "Context") -> list[str]:
    """Estimate the statistics of batch normalisations again, in place; return what happened, in at most one line.

    They are kept only if the divergence from the network before falls.

    Args:
        pruned: flat and functional.
        before: the network before it was pruned, likewise.
        context: the context of the step.
    """
    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in pruned.layers):
        return []
    stale, weights = context.evaluate(pruned, teacher=before), pruned.get_weights()
    divergence = context.adapt(pruned, before, {}).metrics.kl
    change = f"batch statistics estimated again: KL divergence {stale.kl:.4f} -> {divergence:.4f}"
    if divergence < stale.kl:
        return [change]
    pruned.set_weights(weights)
    return [f"{change}; those before are kept"]
