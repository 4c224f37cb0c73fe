"""The input patches of a convolution: the inputs of each output position."""

from typing import Protocol

import numpy as np


class Window(Protocol):
    """What determines the patches: a `Layer`, or a convolution of Keras."""

    @property
    def kernel_size(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]: ...

    @property
    def dilation_rate(self) -> tuple[int, ...]: ...

    @property
    def padding(self) -> str: ...


def all_patches(inputs: np.ndarray, layer: Window) -> np.ndarray:
    """Return a view of the inputs of each output position, (images, rows, columns, channels, *kernel_size).

    Args:
        inputs: the inputs of the layer, (images, height, width, channels).
        layer: gives kernel size, strides, dilation and padding.
    """
    reach = [(size - 1) * rate + 1 for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    if layer.padding == "same":
        # As in TensorFlow: ceil(side / stride) outputs; the odd pixel of padding goes to the bottom and the right.
        margins = [
            max(0, (-(-side // stride) - 1) * stride + extent - side)
            for side, stride, extent in zip(inputs.shape[1:3], layer.strides, reach, strict=True)
        ]
        inputs = np.pad(inputs, ((0, 0), *((margin // 2, margin - margin // 2) for margin in margins), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(inputs, reach, axis=(1, 2))
    (row_stride, column_stride), (row_rate, column_rate) = layer.strides, layer.dilation_rate
    return windows[:, ::row_stride, ::column_stride, :, ::row_rate, ::column_rate]
