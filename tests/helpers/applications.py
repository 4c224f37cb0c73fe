"""Networks of keras.applications with fewer blocks, but with each kind of block: copies of all blocks take minutes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras.src.applications import convnext, densenet, efficientnet, resnet

from pbd.system import keras_state

_stack_v1, _stack_v2 = resnet.stack_residual_blocks_v1, resnet.stack_residual_blocks_v2


def _up_to(layer: str, whole: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
    """Return a function that builds the part of a network up to a layer, with a classifier or pooled features."""

    def build(classes: int = 10, include_top: bool = True, pooling: str = "avg", **settings: Any) -> keras.Model:
        with keras_state.without_values():  # they take most of the time
            model = whole(include_top=False, **settings)
        part = keras.models.clone_model(keras.Model(model.inputs[0], model.get_layer(layer).output, name=model.name))
        x = keras.layers.GlobalAveragePooling2D()(part.outputs[0])
        x = keras.layers.Dense(classes, activation="softmax")(x) if include_top else x
        return keras.Model(part.inputs[0], x, name=model.name)

    return build


def _residual(x: Any) -> Any:
    """Blocks with a convolution in the shortcut, with and without a stride, and blocks without one."""
    return _stack_v1(_stack_v1(x, 64, 2, stride1=1, name="conv2"), 128, 2, name="conv3")


def _residual_v2(x: Any) -> Any:
    """Blocks with a convolution, a pooling with a stride and nothing in the shortcut."""
    return _stack_v2(_stack_v2(x, 64, 2, name="conv2"), 128, 2, stride1=1, name="conv3")


APPLICATIONS: Mapping[str, Callable[..., keras.Model]] = {
    "VGG16": keras.applications.VGG16,
    "ResNet50": functools.partial(resnet.ResNet, _residual, False, True, name="resnet50"),
    "ResNet50V2": functools.partial(resnet.ResNet, _residual_v2, True, True, name="resnet50v2"),
    # All layers of a dense block are joined in the same way: three tell.
    "DenseNet121": functools.partial(densenet.DenseNet, [3, 1, 1, 1], name="densenet121"),
    # Up to the first block with kernels of 1x7.
    "InceptionV3": _up_to("mixed4", keras.applications.InceptionV3),
    # Blocks without expansion, with a stride, and with a residual sum.
    "MobileNetV2": _up_to("block_3_project_BN", keras.applications.MobileNetV2),
    "EfficientNetB0": functools.partial(
        efficientnet.EfficientNet, 1.0, 1.0, 32, blocks_args=efficientnet.DEFAULT_BLOCKS_ARGS[:2]
    ),
    "ConvNeXtTiny": functools.partial(convnext.ConvNeXt, [1, 1, 1, 1], [24, 32, 48, 64], name="convnext_tiny"),
}
"""What builds them, by name; they take the settings that keras.applications takes."""
