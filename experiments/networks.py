"""The networks that are measured: files, those of pbd, and three for images of 32 pixels that are built here.

Speed does not depend on weights: what is built here has random ones.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from pbd.config import TeacherConfig
from pbd.errors import UsageError, unknown_name
from pbd.networks import files, graph
from pbd.pipeline import built_in, teacher_files, teachers

CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)
VGG16_STAGES = ((2, 32), (2, 64), (3, 128), (3, 256), (3, 256))
"""Convolutions and channels of each, half of VGG16's."""


def vgg16_half(classes: int = CLASSES) -> keras.Model:
    """VGG16 for images of 32 pixels: half the channels, normalised, one dense layer at the end; takes raw pixels."""
    inputs = keras.Input(IMAGE_SHAPE)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for stage, (convolutions, channels) in enumerate(VGG16_STAGES, start=1):
        for position in range(1, convolutions + 1):
            x = _normalised(x, channels, 1, f"block{stage}_conv{position}")
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D(name=f"block{stage}_pool")(x)
    outputs = layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="vgg16_half")


def resnet20(classes: int = CLASSES) -> keras.Model:
    """The ResNet of 20 layers for images of 32 pixels (He et al. 2015, section 4.2); takes raw pixels."""
    return _resnet("resnet20", 3, classes)


def resnet56(classes: int = CLASSES) -> keras.Model:
    """The same with 56 layers."""
    return _resnet("resnet56", 9, classes)


def _resnet(name: str, units: int, classes: int) -> keras.Model:
    """Return a ResNet of three stages of so many units of two convolutions."""
    inputs = keras.Input(IMAGE_SHAPE)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.ReLU()(_normalised(x, 16, 1, "stem"))
    for stage, channels in enumerate((16, 32, 64), start=1):
        for unit in range(1, units + 1):
            stride = 2 if stage > 1 and unit == 1 else 1
            prefix = f"stage{stage}_unit{unit}"
            y = layers.ReLU()(_normalised(x, channels, stride, f"{prefix}_conv1"))
            y = _normalised(y, channels, 1, f"{prefix}_conv2")
            if x.shape[-1] != channels:
                x = layers.Conv2D(channels, 1, strides=stride, use_bias=False, name=f"{prefix}_shortcut")(x)
            x = layers.ReLU()(layers.Add()([x, y]))
    outputs = layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name=name)


def _normalised(x: Any, channels: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(channels, 3, strides=stride, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


OWN: dict[str, Callable[[int], keras.Model]] = {
    "vgg16_half": vgg16_half,
    "resnet20": resnet20,
    "resnet56": resnet56,
}


def load_teacher(name: str, image_size: int, classes: int = CLASSES) -> keras.Model:
    """Return the flat teacher; if it is not a file, its weights are random.

    Raises:
        PbdError: there is no such teacher, or it cannot be used.
    """
    names = [*OWN, *built_in.BUILT_IN, *built_in.application_names()]
    if not teacher_files.is_file(name) and name not in names:
        raise UsageError(unknown_name("teacher (no such file, no built-in network)", name, names))
    if name in OWN:
        keras.utils.set_random_seed(0)
        return graph.flatten(OWN[name](classes))
    config = TeacherConfig(teacher=name)
    if teacher_files.is_file(name):
        teachers.FileTeacher(config).check()
        model = files.load(name)
    else:
        model = built_in.build(config, (image_size, image_size, 3), classes, seed=0)
    height, width, channels = graph.image_shape(model)
    return graph.flatten(model, (height or image_size, width or image_size, channels or 3))
