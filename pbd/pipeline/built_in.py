"""Networks that pbd can build: digits_cnn and those of keras.applications."""

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import platformdirs

from pbd.config import TeacherConfig
from pbd.data import ARRAYS, Dataset
from pbd.errors import BadInputError, MissingInputError, one_line, root_cause
from pbd.networks import files
from pbd.system import initial_values, random_state, watchdog


def digits_cnn(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A VGG-like net of six 3x3 convolutions in three stages; takes raw pixels from 0 to 255, returns logits."""
    inputs = x = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for stage, filters in enumerate((32, 64, 128), start=1):
        for position in (1, 2):
            name = f"conv{stage}_{position}"
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
            x = keras.layers.ReLU(name=f"{name}_relu")(x)
        x = keras.layers.MaxPooling2D(name=f"pool{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(x), name="digits_cnn")


BUILT_IN: dict[str, Callable[[tuple[int, int, int], int], keras.Model]] = {"digits_cnn": digits_cnn}


def application_names() -> list[str]:
    """Return the networks of keras.applications, by their function's name."""
    return [name for name in dir(keras.applications) if name[0].isupper()]


def is_built_in(name: str) -> bool:
    """Return whether a network of this name can be built."""
    return name in BUILT_IN or name in application_names()


def preprocessing(name: str) -> str:
    """Return the preprocessing that a keras.applications network was made for, `none` for other networks."""
    if name not in application_names():
        return "none"
    for module in pkgutil.iter_modules(keras.applications.__path__):
        loaded = importlib.import_module(f"keras.applications.{module.name}")
        if hasattr(loaded, name) and hasattr(loaded, "preprocess_input"):
            return module.name
    return "none"


def _application(name: str, input_shape: tuple[int, int, int], num_classes: int, weights: str | None) -> keras.Model:
    """A keras.applications network that ends in global average pooling and one dense layer, as in the paper."""
    if weights == "imagenet" and num_classes == 1000:
        return getattr(keras.applications, name)(input_shape=input_shape, weights="imagenet")
    features = getattr(keras.applications, name)(
        include_top=False, pooling="avg", input_shape=input_shape, weights=weights
    )
    logits = keras.layers.Dense(num_classes, name="logits")(features.output)
    return keras.Model(features.input, logits, name=features.name)


@watchdog.waiting()
@initial_values.on_host()
def build(config: TeacherConfig, input_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Return a built-in network for these images and classes; its weights are random unless the config names some.

    Raises:
        BadInputError: the network does not take images of this shape, or the weights do not fit.
        MissingInputError: the weights cannot be downloaded.
    """
    random_state.seed(seed)
    weights = config.teacher_weights
    try:
        if config.teacher in BUILT_IN:
            model = BUILT_IN[config.teacher](input_shape, num_classes)
        else:
            named = weights if weights == "imagenet" else None
            model = _application(config.teacher, input_shape, num_classes, named)
    except Exception as error:
        if isinstance(root_cause(error), OSError):
            raise MissingInputError(
                f"the weights of {config.teacher} must be in Keras' cache or be downloadable. Received: "
                f"{one_line(error)}. Copy the file into $KERAS_HOME/models (default ~/.keras/models), or save the "
                "network on another host and give --teacher FILE."
            ) from error
        raise BadInputError(
            f"{config.teacher} cannot be built for images {input_shape}. Received: {one_line(error)}. "
            "Give other images, or another --image-size or --teacher-weights."
        ) from error
    if weights not in (None, "imagenet"):
        files.load_weights(model, weights)
    return model


def cache_path(config: TeacherConfig, dataset: Dataset, settings: dict[str, Any]) -> Path:
    """Return where a built-in teacher trained with these settings on this data is kept between runs."""
    file = Path(dataset.name)
    if dataset.name == ARRAYS:
        stamp: Any = dataset.digest()
    elif file.is_dir():
        stamp = [[str(each.relative_to(file)), *_changes(each)] for each in sorted(file.rglob("*")) if each.is_file()]
    else:
        stamp = [str(file.resolve()), *_changes(file)] if file.exists() else dataset.name
    key = hashlib.sha256(json.dumps([settings, stamp, len(dataset.train)], sort_keys=True).encode()).hexdigest()[:16]
    name = f"{config.teacher}-{file.stem}-{key}.keras".replace(":", "-")
    return platformdirs.user_cache_path("pbd") / "teachers" / name


def _changes(file: Path) -> tuple[int, int]:
    """Return what changes if a file is written again: its size and its time."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
