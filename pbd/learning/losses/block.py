"""The loss of a block: its squared error."""

import math
from typing import Any

import keras


def squared_error(output: Any, target: Any) -> Any:
    """Mean squared error of each image in float32, shape `(batch,)`.

    Args:
        output: `(batch, height, width, channels)`.
        target: The same shape.
    """
    ops = keras.ops
    output, target = ops.cast(output, "float32"), ops.cast(target, "float32")  # half precision would lose small errors

    # Backends differentiate mean and square one by one. Written out, the gradient reads the difference only once.
    @ops.custom_gradient
    def error(output: Any, target: Any) -> Any:
        difference = output - target

        def gradients(*upstreams: Any, upstream: Any = None) -> tuple[Any, Any]:
            upstream = upstreams[0] if upstream is None else upstream  # positional in TensorFlow, by name in torch
            output_gradient = ops.reshape(2.0 / math.prod(output.shape[1:]) * upstream, (-1, 1, 1, 1)) * difference
            return output_gradient, -output_gradient

        return ops.mean(ops.square(difference), axis=(1, 2, 3)), gradients

    return error(output, target)
