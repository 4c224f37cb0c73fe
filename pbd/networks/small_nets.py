"""Small networks to distil into, by name: plain stacks of convolutions and residual networks, with random weights.

The plain networks have the layers and, on images of 32x32x3 with 10 classes, the number of parameters of a study of
students of a ResNet18. Each convolution is followed by batch normalisation and ReLU. Take `conv4_dense1` to start with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from pbd.config.values import one_of

layers = keras.layers
Shape = tuple[int, int, int]
MOMENTUM = 0.9
"""Momentum of batch normalisation: with 0.99, Keras' default, moving averages need hundreds of steps from random
weights."""
LARGE_IMAGE = 96
"""From this many pixels a side, a residual network begins with a strided 7x7 convolution and pooling."""


@dataclass(frozen=True)
class Rescaled:
    """The first layer of a small network: pixels times `scale` plus `offset`."""

    scale: float = 1 / 127.5
    offset: float = -1.0

    def __call__(self, images: Any) -> Any:
        return layers.Rescaling(self.scale, self.offset, name="rescaling")(images)


@dataclass(frozen=True)
class _Stack:
    """Convolutions in a row, then dense layers."""

    widths: tuple[int, ...]
    """Output channels of each convolution."""
    pools: tuple[int, ...]
    """Numbers of the convolutions, from 1, that 2x2 max pooling follows."""
    pointwise: tuple[int, ...] = ()
    """Numbers of the convolutions with 1x1 filters; the others have 3x3."""
    hidden: int | None = None
    """Units of a dense layer before the last one."""
    flattened: bool = False
    """Whether the dense layers read every position; if not, the mean over all positions."""

    def __call__(self, input_shape: Shape, num_classes: int, rescaled: Rescaled, name: str) -> keras.Model:
        inputs = keras.Input(input_shape, name="images")
        x = rescaled(inputs)
        for number, width in enumerate(self.widths, start=1):
            x = _convolution(x, width, 1 if number in self.pointwise else 3, f"conv{number}")
            if number in self.pools and min(x.shape[1:3]) > 1:
                x = layers.MaxPooling2D(name=f"pool{number}")(x)
        x = layers.Flatten(name="flat")(x) if self.flattened else layers.GlobalAveragePooling2D(name="average")(x)
        if self.hidden is not None:
            x = layers.Dense(self.hidden, activation="relu", name="dense")(x)
        return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name=name)


@dataclass(frozen=True)
class _Residual:
    """A residual network (He et al. 2015, arXiv:1512.03385, section 4.2) with 1x1 convolutions as shortcuts."""

    widths: tuple[int, ...]
    """Channels of each stage; every stage after the first begins with a stride of 2."""
    blocks: int
    """Residual blocks per stage."""

    def __call__(self, input_shape: Shape, num_classes: int, rescaled: Rescaled, name: str) -> keras.Model:
        inputs = keras.Input(input_shape, name="images")
        x = rescaled(inputs)
        if min(input_shape[:2]) >= LARGE_IMAGE:
            x = _convolution(x, self.widths[0], 7, "conv1", strides=2)
            x = layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
        else:
            x = _convolution(x, self.widths[0], 3, "conv1")
        for stage, width in enumerate(self.widths, start=1):
            for block in range(1, self.blocks + 1):
                x = _block(x, width, 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}")
        x = layers.GlobalAveragePooling2D(name="average")(x)
        return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name=name)


def _convolution(x: Any, width: int, kernel: int, name: str, strides: int = 1, activated: bool = True) -> Any:
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = layers.Conv2D(width, kernel, strides, name=name, **options)(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activated else x


def _block(x: Any, width: int, strides: int, name: str) -> Any:
    y = _convolution(x, width, 3, f"{name}_conv1", strides)
    y = _convolution(y, width, 3, f"{name}_conv2", activated=False)
    if strides > 1 or x.shape[-1] != width:
        x = _convolution(x, width, 1, f"{name}_shortcut", strides, activated=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([y, x]))


SMALL_NETS: dict[str, Callable[[Shape, int, Rescaled, str], keras.Model]] = {
    "conv4_dense2": _Stack((32, 64, 128, 256), (1, 2, 3, 4), hidden=256, flattened=True),
    "conv4_dense1": _Stack((32, 64, 128, 256), (1, 2, 3, 4), flattened=True),
    "conv4_dense2_1x1": _Stack((32, 64, 128, 256), (1, 2, 3, 4), pointwise=(2, 4), hidden=256, flattened=True),
    "conv6_dense1": _Stack((16, 16, 48, 96, 112, 128), (2, 4)),
    "conv4_dense1_narrow": _Stack((32, 64, 112, 160), (1, 2, 3, 4), flattened=True),
    "conv5_dense1": _Stack((32, 32, 48, 112, 112), (2, 3, 4)),
    "conv6_dense1_1x1": _Stack((16, 16, 48, 96, 112, 128), (2, 4), pointwise=(2, 5)),
    "resnet20": _Residual((16, 32, 64), 3),
    "resnet18": _Residual((64, 128, 256, 512), 2),
}
"""How each network is built."""


def build(name: str, input_shape: Shape, num_classes: int, rescaled: Rescaled | None = None) -> keras.Model:
    """Return a small network that maps images to logits; its random weights come from the global seed of Keras.

    Args:
        name: one of `SMALL_NETS`.
        input_shape: height, width and channels. The dense layers of conv4 grow with the image.
        num_classes: number of logits.
        rescaled: how pixels are scaled before the first convolution; the default takes 0..255 to -1..1.

    Raises:
        UsageError: there is no network of this name.

    Example:
        >>> build("resnet20", (32, 32, 3), 10).output_shape
        (None, 10)
    """
    one_of("network", name, SMALL_NETS)
    return SMALL_NETS[name](input_shape, num_classes, rescaled or Rescaled(), name)
