"""The form in which a network is quantised after training."""

import keras

from pbd.deploy import portable
from pbd.deploy.int8 import image_scales, separable_form


def quantizable(network: keras.Model) -> keras.Model:
    """Return a copy of a network whose kernels are those that runtimes round; it computes the same in float32.

    It is for converters, and to be run layer by layer: TensorFlow may compute it wrongly if it compiles it.

    Args:
        network: see `portable.portable`.
    """
    form = portable.portable(network, int8=True, runs_in_tensorflow=False)
    return image_scales.folded(separable_form.with_separate_convolutions(form))
